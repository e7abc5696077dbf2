/** In base64, of its UTF-8 bytes: what a statement takes where a column is bytes. */
export const toBase64 = (text: string): string => Buffer.from(text).toString('base64')
/** Line breaks in it, as PostgreSQL makes them, do not matter. */
export const fromBase64 = (base64: string): string => Buffer.from(base64, 'base64').toString()
