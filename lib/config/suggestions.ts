import { nearest } from '../util/option-names.ts'

/** What other plugins and libraries call the same thing. */
const NEIGHBOURS: Record<string, string> = {
  keyGenerator: 'key',
  nameSpace: 'keyPrefix',
  prefix: 'keyPrefix',
  skipOnError: 'onStoreError',
  errorResponseBuilder: 'errors',
  enableDraftSpec: 'profile',
  lockTtl: 'lease',
  processingTtl: 'lease',
  storeIf: 'cacheable'
}
const BY_LOWER_CASE = new Map(Object.entries(NEIGHBOURS).map(([name, ours]) => [name.toLowerCase(), ours]))

/** The option that was probably meant by an unknown name: what neighbours call so, else the nearest spelling. */
export function suggestionFor (name: string, options: readonly string[]): string | undefined {
  return BY_LOWER_CASE.get(name.toLowerCase()) ?? nearest(name, options)
}
