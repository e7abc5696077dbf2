/** Builds the plugin as it was at a commit, beside the build of the work tree. */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync, symlinkSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

// From benchmarks/.build/benchmarks/against, where this runs.
const root = fileURLToPath(new URL('../../../../', import.meta.url))
const folder = `${root}benchmarks/.build/against/`

/** The build that `tsc` has just made of the work tree. */
export const WORK_TREE = new URL('../../lib/index.js', import.meta.url).href

const git = (...args: string[]): string => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim()

/**
 * The address of the entry of a commit's build; made once for each commit.
 * @throws {Error} where there is no such commit.
 */
export function buildOf (ref: string): { entry: string, sha: string } {
  const sha = git('rev-parse', '--verify', `${ref}^{commit}`)
  const copy = `${folder}${sha}/`
  const entry = new URL(`file://${copy}dist/index.js`).href
  if (!existsSync(`${copy}dist/index.js`)) {
    rmSync(copy, { recursive: true, force: true })
    mkdirSync(copy, { recursive: true })
    const archive = execFileSync(
      'git', ['archive', sha, 'lib', 'package.json', 'tsconfig.json', 'tsconfig.build.json'], { cwd: root }
    )
    execFileSync('tar', ['-x', '-C', copy], { input: archive })
    symlinkSync(`${root}node_modules`, `${copy}node_modules`)
    const compile = ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json']
    execFileSync(process.execPath, compile, { cwd: copy, stdio: 'inherit' })
  }
  return { entry, sha: sha.slice(0, 7) }
}
