/** FNV-1a, from `seed` on, over the UTF-16 code units: 32 bits, cheap, and no secret. */
export function hashOf (key: string, seed = 0x811c9dc5): number {
  let hash = seed
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193)
  return hash >>> 0
}
