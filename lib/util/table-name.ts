const NAME = /^[a-z_][a-z0-9_$]{0,62}$/i

/**
 * A table's name as SQL has it; it may have a schema in front: `app.keys`. @throws {TypeError} when it is none; `where`
 * begins the message.
 */
export function quotedTable (table: unknown, where: string): string {
  const parts = typeof table === 'string' ? table.split('.') : []
  if (parts.length < 1 || parts.length > 2 || !parts.every(part => NAME.test(part))) {
    throw new TypeError(`${where}: option "table" must be a name of letters, digits and _, ` +
      `with a schema and a dot before it if need be, got ${JSON.stringify(table)}`)
  }
  return parts.map(part => `"${part}"`).join('.')
}
