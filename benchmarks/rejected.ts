/** Measurements that do not count: requests that failed, or a machine that stood still meanwhile. */
const ATTEMPTS = 3

export class Rejected extends Error {}

let count = 0
/** How many measurements were rejected and made again so far. */
export const rejections = (): number => count

/** Makes a measurement again when it was rejected; the third rejection in a row is an error. */
export async function untilAccepted<T> (measure: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await measure()
    } catch (error) {
      if (!(error instanceof Rejected) || attempt === ATTEMPTS) throw error
      count++
      process.stderr.write(`rejected, measured again (${error.message}) … `)
    }
  }
}
