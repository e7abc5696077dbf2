const SEED = 0x811c9dc5

/**
 * FNV-1a over the UTF-16 code units from `start` on: 32 bits, cheap, and no secret. `seed`: what stands before them.
 */
export function hashOf (key: string, start = 0, seed = SEED): number {
  let hash = seed
  for (let i = Math.max(0, start); i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193)
  return hash >>> 0
}
