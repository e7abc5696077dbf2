// @ts-check
/** Puts it together: buttons start scenes, events make the story, the story is drawn and told. */
import { nextOf } from './next.js'
import { createPayment, createScenes, money } from './scenes.js'
import { Story } from './story.js'
import { draw } from './timeline.js'
import { caveat, comparison, lesson, sentence, verdict } from './words.js'

/** @typedef {import('./story.js').Sent} Sent */

/** @type {(id: string) => HTMLElement} */
const $ = id => /** @type {HTMLElement} */ (document.getElementById(id))
const picture = /** @type {SVGSVGElement} */ (/** @type {unknown} */ ($('picture')))
const scroller = $('scroller')
const isOn = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ ($(id)).checked
const narrow = window.matchMedia('(max-width: 719px)')
const still = window.matchMedia('(prefers-reduced-motion: reduce)')

const GONE = 'The server does not answer. Is it still running?'
const START = 'Press Pay. Then send the same again, or break something on the way.'

let payment = createPayment(true)
/** The newest scene. @type {string | undefined} */
let last
/** Whether that was played with the provider asked first. */
let asked = false
let story = new Story()
/** @type {number | undefined} */
let picked
/** The server's clock, less this page's: from the event that came the fastest. */
let skew = -Infinity
const now = () => performance.now() + skew

function anew () {
  payment = createPayment(!isOn('without'))
  const { downs } = story
  story = new Story()
  story.downs = downs.filter(({ end }) => end === undefined)
  picked = undefined
  $('story').replaceChildren()
  $('caption').textContent = START
  showPayment()
  show()
}

/** What can be done, and the one thing to do next. */
function showNext () {
  const next = nextOf(last, { used: payment.used, asked, without: isOn('without'), ask: isOn('ask') })
  for (const button of buttons) {
    const early = 'again' in button.dataset && !payment.used
    button.toggleAttribute('data-early', early)
    button.setAttribute('aria-disabled', String(busy || early))
    button.toggleAttribute('data-next', !busy && button.dataset['scene'] === next)
  }
  for (const id of ['without', 'ask']) $(id).toggleAttribute('data-next', !busy && id === next)
}

function showPayment () {
  $('order').textContent = payment.order
  $('amount').textContent = money(payment.amount)
  $('key').textContent = payment.key ?? 'none'
}

// The picture: each frame while something goes on, or at each step where motion is not wanted.
let drawing = false
/** The newest step is brought into sight. */
let following = false
function paint () {
  drawing = false
  const end = draw(picture, story, now(), { scale: narrow.matches ? 100 : 116, width: scroller.clientWidth, picked })
  if (following) scroller.scrollLeft = Math.max(scroller.scrollLeft, end - scroller.clientWidth + 104)
  following &&= story.isLive(now())
  if (story.isLive(now()) && !still.matches) repaint()
}
function repaint () {
  if (drawing) return
  drawing = true
  window.requestAnimationFrame(paint)
}

function show () {
  const count = story.charges.length
  $('card').dataset['charges'] = count > 1 ? 'many' : String(count)
  $('times').textContent = `${count}×`
  $('verdict').textContent = verdict(story)
  $('caveat').textContent = caveat(story)
  $('lesson').textContent = lesson(story, isOn('ask'))
  showNext()
  $('statement').replaceChildren(...story.charges.map(({ id, by }) => node(
    'li',
    '',
    node('span', '', payment.order),
    node('span', '', id),
    node('span', '', `by ${by.toUpperCase()}`),
    node('b', '', money(payment.amount))
  )))
  const { length } = story.requests
  $('empty').hidden = length > 0
  $('none').hidden = length > 0
  picture.setAttribute(
    'aria-label',
    `${length === 0 ? 'Empty' : `${length} ${length === 1 ? 'request' : 'requests'}`}. ` +
      `${verdict(story)} The list “Request by request” says what happened.`
  )
  repaint()
}

/** @param {string} name @param {string} className @param {Array<Node | string>} children */
function node (name, className, ...children) {
  const element = document.createElement(name)
  if (className !== '') element.className = className
  element.append(...children)
  return element
}

/** @param {Sent} sent */
function tell (sent) {
  const { answer, nth, to, request } = sent
  const status = answer === undefined ? 'no answer' : String(answer.status)
  const same = comparison(story, sent)
  const words = sentence(story, sent)
  const details = node('details', '',
    node('summary', '',
      node('span', 'nth', String(nth)),
      node('span', 'words', words,
        ...(same === '' ? [] : [' ', node('em', same.startsWith('Not') ? 'other' : '', same)])),
      node('span', `status s${status.charAt(0)}${answer?.replayed === true ? ' replayed' : ''}`, status,
        ...(answer?.replayed === true ? [node('small', '', 'replayed')] : []))),
    node('div', 'wire',
      node('figure', '',
        node('figcaption', '', `Sent to ${to.toUpperCase()}`),
        node('pre', '', `${sent.head}\n\n${sent.body}`)),
      node('figure', '',
        node('figcaption', '', 'Received'),
        node('pre', '', answer === undefined ? 'nothing: the connection broke' : `${answer.head}\n\n${answer.body}`))))
  const item = node('li', '', details)
  const pick = (/** @type {number | undefined} */ number) => () => {
    picked = number
    repaint()
  }
  item.addEventListener('mouseenter', pick(request))
  item.addEventListener('mouseleave', pick(undefined))
  item.addEventListener('focusin', pick(request))
  item.addEventListener('focusout', pick(undefined))
  item.dataset['nth'] = String(nth)
  // Answers come in any order.
  const later = [...$('story').children].find(other => Number(/** @type {HTMLElement} */ (other).dataset['nth']) > nth)
  $('story').insertBefore(item, later ?? null)
  $('caption').textContent = `${nth}. ${words}`
}

const events = new window.EventSource('/playground/events')
events.addEventListener('ready', () => {
  // Perhaps another process than before, which knows nothing of this payment.
  anew()
  setBusy(false)
})
events.addEventListener('error', () => {
  skew = -Infinity
  $('caption').textContent = GONE
  setBusy(true)
})
events.addEventListener('message', ({ data }) => {
  /** @type {import('../events.ts').Happening} */
  const happening = JSON.parse(data)
  skew = Math.max(skew, happening.at - performance.now())
  if (happening.order !== payment.order && happening.what !== 'up' && happening.what !== 'down') return
  story.apply(happening)
  following = true
  if (happening.what === 'answered' || happening.what === 'lost') {
    const sent = story.requests.find(({ request }) => request === happening.request)
    if (sent !== undefined) tell(sent)
  }
  show()
})

const scenes = createScenes({ payment: () => payment, anew, ask: () => isOn('ask') })
const buttons = /** @type {HTMLButtonElement[]} */ ([...document.querySelectorAll('[data-scene]')])
let busy = false
for (const button of buttons) {
  button.addEventListener('click', async () => {
    const scene = scenes[button.dataset['scene'] ?? '']
    if (busy || scene === undefined || 'early' in button.dataset) return
    setBusy(true)
    last = button.dataset['scene']
    asked = isOn('ask')
    button.dataset['playing'] = ''
    await scene().catch(() => { $('caption').textContent = GONE })
    delete button.dataset['playing']
    setBusy(false)
  })
}
/** The buttons keep the focus meanwhile: they are not disabled, but do nothing. @param {boolean} value */
function setBusy (value) {
  busy = value
  document.body.dataset['busy'] = String(value)
  showNext()
}

$('without').addEventListener('change', anew)
$('ask').addEventListener('change', show)
window.addEventListener('resize', repaint)
setBusy(true)
anew()
$('caption').textContent = 'Two server processes are being started …'
