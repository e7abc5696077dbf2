/** What becomes of a value that is written as JSON and read again, as far as types can tell. */
export type Recorded<T> =
  T extends { toJSON (): infer Json } ? Recorded<Json>
    : T extends string | number | boolean | null | undefined ? T
      : T extends bigint | symbol | ((...args: never) => unknown) ? never
        : T extends object ? { [Name in keyof T]: Recorded<T[Name]> }
          : unknown

/** In base64, as the statements take it; '' for undefined. @throws {TypeError} for a BigInt or a cycle. */
export function encodeResult (result: unknown): string {
  const json = JSON.stringify(result) as string | undefined
  return json === undefined ? '' : Buffer.from(json).toString('base64')
}

export function decodeResult (recorded: string): unknown {
  return recorded === '' ? undefined : JSON.parse(Buffer.from(recorded, 'base64').toString())
}
