/** What an operator reads, as HTML. */
import type { IdempotencyInspection } from '../../lib/index.ts'

export interface Found {
  scope: string
  key: string
  entry: IdempotencyInspection | undefined
}

const MEANING = {
  held: 'A request holds this key: its handler runs, or its process died less than a lease ago. ' +
    'Duplicates get 409 idempotency_in_progress.',
  freed: 'The last run ended without a response to keep (5xx, 429, or released). The next request with this key runs.',
  completed: 'The response is kept. Retries get it; the handler does not run again.'
}
const WARNING = {
  held: 'If its handler still runs, it loses its lease, and the next request runs beside it.',
  freed: 'The count of attempts is forgotten as well.',
  completed: 'The next request with this key runs the handler again: a card may be charged a second time.'
}

const escape = (text: unknown): string => String(text).replace(/[&<>"']/g, char => `&#${char.charCodeAt(0)};`)

export function ask (prefix: string, error?: string): string {
  return layout(`<h1>Idempotency key</h1>${form(prefix, '', '', error)}`)
}

export function show (prefix: string, { scope, key, entry }: Found, error?: string): string {
  const alert = error === undefined ? '' : `<p role="alert" class="alert">${escape(error)}</p>`
  if (entry === undefined) {
    return layout(`<h1>Nothing is known of this key</h1>${alert}
      <p>It was never used in this scope, its time is over, or it was freed. A different scope is a different key: by
      default, the whole value of <code>Authorization</code> counts.</p>${form(prefix, scope, key)}`)
  }
  const { state, attempt, since, until, status, replayable } = entry
  const rows: Array<[string, string]> = [
    ['Key', `<code>${escape(key)}</code>`],
    ['State', `<strong class="${state}">${state}</strong>`],
    ['Executions so far', escape(attempt)],
    ['In this state since', time(since)],
    [state === 'held' ? 'Lease ends, unless renewed' : 'Forgotten', time(until)]
  ]
  if (status !== undefined) {
    rows.push(['Status of the response', `${escape(status)}${replayable === true ? '' : ' (could not be kept)'}`])
  }
  return layout(`<h1>Idempotency key</h1>${alert}<p>${MEANING[state]}</p>
    <dl>${rows.map(([name, value]) => `<dt>${name}</dt><dd>${value}</dd>`).join('')}</dl>
    <form method="post" action="${escape(prefix)}">${hidden(scope, key)}<button>Look again</button></form>
    <details><summary>Free this key …</summary>
      <p>${WARNING[state]}</p>
      <form method="post" action="${escape(prefix)}/free">${hidden(scope, key)}
        <input type="hidden" name="confirm" value="${escape(stateOf(entry))}">
        <button class="danger">Yes, free it</button></form>
    </details>
    <p><a href="${escape(prefix)}">Another key</a></p>`)
}

export function freed (prefix: string, { entry }: Found): string {
  return layout(`<h1>The key is free</h1>
    <p role="status">It was ${escape(entry?.state)}. The next request with it runs.</p>
    <p><a href="${escape(prefix)}">Another key</a></p>`)
}

/** Changes with every step that a key takes. */
export function stateOf ({ state, attempt, since }: IdempotencyInspection): string {
  return `${state} ${attempt} ${since.getTime()}`
}

function form (prefix: string, scope: string, key: string, error?: string): string {
  const invalid = error === undefined ? '' : ' aria-invalid="true" aria-describedby="key-error"'
  return `<form method="post" action="${escape(prefix)}" autocomplete="off">
    <label for="scope">Scope</label>
    <input id="scope" name="scope" value="${escape(scope)}" aria-describedby="scope-help" spellcheck="false">
    <p id="scope-help" class="help">What the option <code>scope</code> returns; by default the whole value of
      <code>Authorization</code>, such as <code>Bearer …</code>. Empty: the anonymous scope.</p>
    <label for="key">Key</label>
    <input id="key" name="key" value="${escape(key)}" required maxlength="1000" spellcheck="false"${invalid}>
    ${error === undefined ? '' : `<p id="key-error" role="alert" class="alert">${escape(error)}</p>`}
    <button>Look</button></form>`
}

function hidden (scope: string, key: string): string {
  return `<input type="hidden" name="scope" value="${escape(scope)}">` +
    `<input type="hidden" name="key" value="${escape(key)}">`
}

function time (date: Date): string {
  return `<time datetime="${date.toISOString()}">${date.toISOString().replace('T', ' ').replace('Z', ' UTC')}</time>`
}

function layout (body: string): string {
  return `<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Idempotency key</title><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 36rem; margin: 0 auto; padding: 2rem 1rem }
h1 { font-size: 1.4rem; line-height: 1.25 }
label { display: block; margin-top: 1rem; font-weight: 600 }
input, button { font: inherit; border: 1px solid #767676; border-radius: 4px }
input { box-sizing: border-box; width: 100%; padding: .5rem; font-family: ui-monospace, monospace }
button { margin-top: 1rem; padding: .5rem 1rem; cursor: pointer }
.danger { color: #fff; background: #b3261e; border-color: #b3261e }
.help { margin: .25rem 0 0; font-size: .875rem }
.alert { padding: .5rem .75rem; border-left: 4px solid #b3261e }
dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem 1.5rem } dd { margin: 0; overflow-wrap: anywhere }
summary { margin-top: 1.5rem; cursor: pointer }
code { overflow-wrap: anywhere }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr } dd { margin-bottom: .5rem } }
</style></head><body><main>${body}</main></body></html>`
}
