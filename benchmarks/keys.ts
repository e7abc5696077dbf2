/** The keys that the load sends: 36 characters, as a UUID has. */
const PREFIX = '8e03978e-40d5-43e8-bc93-'

export const SAME_KEY = `${PREFIX}6894a57f9324`
/** Where a fresh key's number goes in a request that was built with this one. */
export const NUMBER = '000000000000'
export const KEY_TO_NUMBER = `${PREFIX}${NUMBER}`

let count = 0
export const freshNumber = (): string => String(++count).padStart(NUMBER.length, '0')
export const freshKey = (): string => `${PREFIX}${freshNumber()}`
