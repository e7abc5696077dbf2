import neostandard from 'neostandard'

export default [
  ...neostandard({ ts: true, ignores: ['dist', '**/.build', '.tap', '.mutants'] }),
  { files: ['lib/**/*.ts'], rules: { '@typescript-eslint/no-explicit-any': 'error', 'no-console': 'error' } }
]
