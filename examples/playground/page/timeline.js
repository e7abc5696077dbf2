// @ts-check
/** The picture of a payment: a lane each for the client, the instances, the store and the card. */
import { createAxis } from './axis.js'

/** @typedef {import('./story.js').Story} Story */
/** @typedef {import('./story.js').Sent} Sent */
/** @typedef {import('./story.js').Lease} Lease */

/** Where the lanes are; style.css sets their names beside them. */
const LANES = { client: 24, a: 128, b: 178, store: 236, card: 294 }
const ROW = 26
const ROWS = 3
const FLOOR = 324
const HEIGHT = 344
const LEFT = 16
/** px that a label may take at the right end. */
const MARGIN = 104

/**
 * @param {string} name
 * @param {Record<string, string | number>} attributes
 * @param {Array<Element | string>} children
 */
function el (name, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value))
  element.append(...children)
  return element
}
/** @param {string} of @param {number} x1 @param {number} y1 @param {number} x2 @param {number} y2 */
const line = (of, x1, y1, x2, y2) => el('line', { class: of, x1, y1, x2, y2 })
/** @param {string} of @param {number} x @param {number} y @param {string} words */
const text = (of, x, y, words) => el('text', { class: of, x, y }, words)
/** @param {string} of @param {number} x @param {number} y @param {number} width @param {number} height */
const box = (of, x, y, width, height) => el('rect', { class: of, x, y, width: Math.max(2, width), height, rx: 3 })
/** @param {string} of @param {number} x @param {number} y @param {number} r */
const cross = (of, x, y, r) =>
  el('path', { class: of, d: `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}` })

/** B's visits stand a little to the right, for both to be seen. @param {import('../events.ts').Name} by */
const shift = by => by === 'b' ? 3 : 0
/** @param {import('../events.ts').Name} by @param {number} x @param {number} to */
const visit = (by, x, to) => line(`visit ${by}`, x + shift(by), LANES[by], x + shift(by), to)

/** What stands at the end of a request. @param {Sent} sent */
function outcomeOf ({ answer, end, dead }) {
  if (end === undefined) return { kind: 'open', words: '' }
  if (answer === undefined) return { kind: 'bad', words: dead === true ? 'no answer' : 'answer lost' }
  if (answer.replayed) return { kind: 'good', words: `${answer.status} replay` }
  return { kind: answer.status >= 500 ? 'bad' : answer.status >= 400 ? 'warn' : 'plain', words: String(answer.status) }
}

/**
 * Requests whose drawings would overlap have rows of their own.
 * @param {Sent[]} requests
 * @param {(at: number) => number} place
 * @param {number} now
 */
function rowsOf (requests, place, now) {
  /** @type {number[]} */
  const ends = Array(ROWS).fill(-Infinity)
  return requests.map(sent => {
    const from = place(sent.at) - 12
    const free = ends.findIndex(end => end <= from)
    const row = free === -1 ? ends.indexOf(Math.min(...ends)) : free
    ends[row] = Math.max(from + 26, place(sent.end ?? now)) + outcomeOf(sent).words.length * 7.5 + 10
    return row
  })
}

/**
 * @param {SVGSVGElement} svg
 * @param {Story} story
 * @param {number} now
 * @param {{ scale: number, width: number, picked: number | undefined }} view
 */
export function draw (svg, story, now, { scale, width: room, picked }) {
  const live = story.isLive(now)
  /** @param {Lease} lease */
  const endOf = ({ end, until }) => end ?? Math.min(until, now)
  const axis = createAxis([
    ...story.requests.map(({ at, end = now }) => /** @type {[number, number]} */ ([at, end])),
    ...story.leases.map(lease => /** @type {[number, number]} */ ([lease.at, endOf(lease)])),
    ...story.downs.map(({ at, end = now }) => /** @type {[number, number]} */ ([at, end]))
  ], scale, LEFT)
  const { place } = axis
  const width = Math.max(room, axis.end + MARGIN)
  svg.setAttribute('width', String(width))
  svg.setAttribute('height', String(HEIGHT))
  svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`)
  svg.classList.toggle('picking', picked !== undefined)

  const back = el('g', {})
  const front = el('g', {})
  const top = el('g', {})

  // Seconds, from the start of each stretch.
  for (const { from, to, x } of axis.periods) {
    for (let s = 0; s * 1000 <= to - from; s++) {
      back.append(
        line('second', x + s * scale, 12, x + s * scale, FLOOR), text('tick', x + s * scale + 4, HEIGHT - 5, `${s} s`)
      )
    }
  }
  for (const { x, width } of axis.gaps) {
    back.append(
      el('rect', { class: 'gap', x, y: 8, width, height: HEIGHT }), text('pause', x + width / 2, LANES.card + 4, '···')
    )
  }

  // The lanes. An instance's breaks off where it was killed.
  back.append(line('lane', 0, LANES.store, width, LANES.store), line('lane', 0, LANES.card, width, LANES.card))
  for (const name of /** @type {const} */ (['a', 'b'])) {
    let x = 0
    for (const { at, end } of story.downs.filter(({ instance }) => instance === name)) {
      const up = end === undefined ? width : place(end)
      back.append(
        line(`lane ${name}`, x, LANES[name], place(at), LANES[name]),
        line('down', place(at) + 10, LANES[name], up, LANES[name])
      )
      top.append(cross('kill', place(at), LANES[name], 7), text('bad', place(at) + 12, LANES[name] - 9, 'killed'))
      if (end !== undefined) {
        top.append(
          el('circle', { class: `up ${name}`, cx: up, cy: LANES[name], r: 4 }),
          text('small', Math.max(up + 7, place(at) + 56), LANES[name] - 9, 'started again')
        )
      }
      x = up
    }
    back.append(line(`lane ${name}`, x, LANES[name], width, LANES[name]))
  }

  // Who asked the store, the card.
  for (const { at, by } of story.visits) back.append(visit(by, place(at), LANES.store))
  for (const { at, by } of [...story.charges, ...story.asked]) back.append(visit(by, place(at), LANES.card))

  for (const lease of story.leases) front.append(...drawLease(lease, place, now, endOf(lease)))
  const { kept } = story
  if (kept?.end !== undefined) {
    front.append(line('keep', place(kept.end), LANES.store, width, LANES.store), el('circle', {
      class: 'keep', cx: place(kept.end), cy: LANES.store, r: 5
    }))
    front.append(text('good', place(kept.end) + 10, LANES.store - 9, 'answer kept'))
  }

  const rows = rowsOf(story.requests, place, now)
  const requests = story.requests.map((sent, i) => drawRequest(sent, rows[i] ?? 0, place, now, picked))
  front.append(...requests.map(({ arrows }) => arrows), ...requests.map(({ marks }) => marks))

  for (const { at, by, how } of story.steps) {
    // Under the lease and its renewals.
    const [x, y] = [place(at) + shift(by), LANES.store + 26]
    back.append(visit(by, place(at), y))
    front.append(el('path', { class: 'step', d: `M${x} ${y - 7}l7 7l-7 7l-7 -7z` }))
    front.append(text('good', x + 11, y + 4, how === 'recorded' ? 'step recorded' : 'step found'))
  }
  front.append(...drawCharges(story, place))
  for (const { at, found } of story.asked) {
    front.append(
      el('circle', { class: 'ask', cx: place(at), cy: LANES.card, r: 9 }),
      text('question', place(at), LANES.card + 4, '?')
    )
    if (found) front.append(text('good', place(at) + 14, LANES.card - 8, 'found it'))
  }
  if (live) front.append(line('now', place(now), 8, place(now), FLOOR))
  svg.replaceChildren(back, front, top)
  return place(now)
}

/** @param {Lease} lease @param {(at: number) => number} place @param {number} now @param {number} end */
function drawLease ({ by, at, until, renewals, how, deadAt, end: ended }, place, now, end) {
  const top = LANES.store - 10
  const from = place(at)
  const alive = place(deadAt ?? end)
  const parts = [box(`hold ${by}`, from, top, alive - from, 20)]
  if (ended === undefined && until > now) parts.push(box(`left ${by}`, from, top, place(end) - from + 1, 20))
  if (deadAt !== undefined) {
    parts.push(box(`dead ${by}`, alive, top, place(end) - alive, 20))
    if (place(end) - alive > 60) {
      parts.push(text(
        'small',
        alive + 4,
        top - 6,
        place(end) - alive > 175 ? `${by.toUpperCase()} is dead, its lease runs out` : 'lease runs out'
      ))
    }
  }
  for (const renewal of renewals) parts.push(line(`renewal ${by}`, place(renewal), top + 20, place(renewal), top + 27))
  const width = alive - from
  const words = `${by.toUpperCase()} holds the key`
  if (width > 44) {
    parts.push(text(
      `in ${by}`,
      from + 7,
      LANES.store + 4,
      width > 112 ? words : width > 70 ? `${by.toUpperCase()} holds` : by.toUpperCase()
    ))
  }
  if (how === 'freed') {
    parts.push(
      el('circle', { class: 'free', cx: place(end), cy: LANES.store, r: 5 }),
      text('small', place(end) + 9, top - 1, 'freed')
    )
  }
  return parts
}

/**
 * Coins that would overlap lie side by side, under one label.
 * @param {Story} story
 * @param {(at: number) => number} place
 */
function drawCharges ({ charges }, place) {
  let x = -Infinity
  let first = 1
  return charges.flatMap(({ at, nth }, i) => {
    if (place(at) > x + 90) first = nth
    x = Math.max(place(at), x + 26)
    const of = nth === 1 ? '' : ' bad'
    const coin = [
      el('circle', { class: `coin${of}`, cx: x, cy: LANES.card, r: 12 }), text(`euro${of}`, x, LANES.card + 4, '€')
    ]
    const next = charges[i + 1]
    if (next !== undefined && place(next.at) <= x + 90) return coin
    return [...coin, text(
      `small${of}`,
      x + 17,
      LANES.card - 8,
      first === nth ? `charge ${nth}` : `charges ${first} ${nth === first + 1 ? 'and' : 'to'} ${nth}`
    )]
  })
}

/**
 * @param {Sent} sent
 * @param {number} row
 * @param {(at: number) => number} place
 * @param {number} now
 * @param {number | undefined} picked
 */
function drawRequest (sent, row, place, now, picked) {
  const { to, at, end, answer, run, nth } = sent
  const lane = LANES[to]
  const y = LANES.client + row * ROW
  // Two that leave at once have arrows of their own.
  const from = place(at) + row * 5
  const until = place(end ?? now) + row * 5
  const isLong = until - from > 24
  const { kind, words } = outcomeOf(sent)
  const arrows = el('g', {})
  const marks = el('g', {})
  for (const group of [arrows, marks]) group.setAttribute('class', picked === sent.request ? 'request on' : 'request')

  arrows.append(
    line(`call ${to}`, from, y, from, lane - 5),
    el('path', { class: `head ${to}`, d: `M${from - 4} ${lane - 10}h8l-4 7z` })
  )
  if (isLong) arrows.append(line(`wait ${kind}`, from, y, until, y))
  if (isLong && answer !== undefined) arrows.append(line(`back ${to}`, until, lane, until, y))
  if (sent.dead === false) {
    const middle = (LANES.client + (ROWS - 1) * ROW + lane) / 2
    arrows.append(line(`back ${to}`, until, lane, until, middle + 8))
    marks.append(cross('kill', until, middle, 6))
  }
  if (run !== undefined) {
    const left = place(run.at)
    const width = place(run.end ?? now) - left
    marks.append(box(`run ${to}`, left, lane - 10, width, 20))
    if (width > (run.attempt === 1 ? 40 : 72)) {
      marks.append(text(`in ${to}`, left + 7, lane + 4, run.attempt === 1 ? 'runs' : `attempt ${run.attempt}`))
    }
  } else if (answer !== undefined) {
    marks.append(el('circle', { class: `look ${to}`, cx: from, cy: lane, r: 5 }))
  }
  marks.append(text(`outcome ${kind}`, isLong ? until + 6 : from + 14, y + 4, words))
  marks.append(el('circle', {
    class: `disc ${kind}`, cx: from, cy: y, r: 10
  }), text('number', from, y + 4, String(nth)))
  return { arrows, marks }
}
