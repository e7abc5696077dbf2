import { importX } from 'eslint-plugin-import-x'
import neostandard from 'neostandard'

/**
 * The rooms of lib, and what each may import beside its own files. A file at the top is a room of its own, but for
 * index.ts, the table of contents, which may import all, and the entries of subpaths, which share their folder's row.
 */
const ROOMS = {
  util: [],
  stores: ['util'],
  protocol: ['stores/contract.ts', 'util'],
  config: ['protocol', 'stores', 'util'],
  request: [],
  response: ['stores/contract.ts'],
  'events.ts': ['protocol/errors.ts', 'util'],
  lease: ['protocol', 'stores', 'config', 'events.ts', 'util'],
  'operator.ts': ['lease', 'protocol', 'stores'],
  lifecycle: ['util', 'stores', 'protocol', 'config', 'request', 'response', 'events.ts', 'lease'],
  openapi: ['config', 'protocol'],
  sql: ['config', 'protocol', 'stores/contract.ts', 'stores/postgres', 'util', 'lifecycle/execution.ts', 'index.ts'],
  'store-tests': ['stores/contract.ts', 'index.ts']
}

const zones = Object.entries(ROOMS).map(([room, allowed]) => ({
  target: room.endsWith('.ts') ? [`./lib/${room}`] : [`./lib/${room}`, `./lib/${room}.ts`],
  from: './lib',
  except: [room, ...allowed].map(name => `./${name}`),
  message: `lib/${room} may import ${allowed.join(', ') || 'nothing of lib'}, see the table in eslint.config.js.`
}))

export default [
  ...neostandard({ ts: true, ignores: ['dist', '**/.build', '.tap', '.mutants'] }),
  {
    files: ['*.js', '{lib,test,examples,benchmarks}/**/*.{js,ts}'],
    rules: {
      '@stylistic/max-len': ['error', 120],
      // Two, since the rule counts `() => { one() }` as two.
      '@stylistic/max-statements-per-line': ['error', { max: 2 }]
    }
  },
  {
    files: ['test/**/*.{js,ts}'],
    rules: { 'max-lines': ['error', 399] }
  },
  {
    files: ['lib/**/*.ts'],
    plugins: { 'import-x': importX },
    settings: { 'import-x/extensions': ['.ts'], 'import-x/parsers': { '@typescript-eslint/parser': ['.ts'] } },
    rules: {
      '@typescript-eslint/no-explicit-any': 'error',
      'no-console': 'error',
      'import-x/no-restricted-paths': ['error', { basePath: import.meta.dirname, zones }],
      'import-x/no-cycle': 'error',
      'no-restricted-syntax': ['error', {
        selector: 'CallExpression[callee.object.property.name="log"][callee.object.object.name!="instance"]' +
          ':not(:has(Property[key.name="idempotencyId"]))',
        message: 'A log line of a request has its idempotencyId.'
      }]
    }
  }
]
