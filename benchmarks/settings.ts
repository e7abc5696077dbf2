/** How long it all takes: pairs of processes for each ratio, rounds of each pair, and seconds of each round. */
export const PAIRS = Number(process.env['PAIRS'] ?? 3)
export const ROUNDS = Number(process.env['ROUNDS'] ?? 3)
export const SECONDS = Number(process.env['SECONDS'] ?? 1)
