/** How long it all takes. */
export const ROUNDS = Number(process.env['ROUNDS'] ?? 7)
export const SECONDS = Number(process.env['SECONDS'] ?? 1.2)
