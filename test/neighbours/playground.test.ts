import { once } from 'node:events'
import { chromium } from 'playwright-core'
import t from 'tap'
import { until } from '../fixtures/app.ts'
import { faint, nameless } from './fixtures/accessibility.ts'
import { findChromium } from '../fixtures/get-chromium.js'
import { livingInstances, Person, startExample } from './fixtures/person.ts'

/** The playground in a real browser, by what a person sees. `SCREENSHOTS=folder` keeps pictures of the scenes. */

const server = await startExample(t, 'npm', 'start')
const early = livingInstances(server)
// The scenes that wait for a lease, each on a server of its own.
t.jobs = 3
const browser = await chromium.launch({ executablePath: String(findChromium()), args: ['--no-sandbox'] })
t.teardown(async () => await browser.close())

const NOT = 'The card was not charged.'
const HELD_BY_DEAD = new RegExp(
  `^\\d B found the key held by A, which is dead, but its lease has not run out: 409, try again in 1 s. ${NOT} 409$`
)

t.test('the example server prints what to try, and spawns nothing before the page is opened', async t => {
  t.match(server.output, 'curl -i http://127.0.0.1:')
  t.same(early, [])
})

t.test('G1, G3: a retry gets the same answer, here and elsewhere; another body does not', async t => {
  const person = await Person.open(t, browser, server.url)
  await person.snap('empty')
  t.same(await person.card(), ['Not charged yet.'])
  await person.press('Pay', 'Retry', 'Retry elsewhere', 'Change the amount')
  t.same(await person.sentences(4), [
    '1 A took the key, ran the payment and charged the card. The answer is kept. 201',
    `2 A found the key completed and sent its own answer again. ${NOT} Same body as answer 1, ` +
      'byte for byte. 201 replayed',
    `3 B found the key completed and sent A's answer again. ${NOT} Same body as answer 1, byte for byte. 201 replayed`,
    `4 A found the key used for another body: a clear 409, and nothing ran. ${NOT} 409`
  ])
  t.same(await person.card(), ['Charged once.', 'by A €42.00'])
  const body = await person.body(1)
  t.match(JSON.parse(body), { amount: 4200, status: 'paid' })
  t.same([await person.body(2), await person.body(3)], [body, body])
  t.match(JSON.parse(await person.body(4)), { code: 'idempotency_key_mismatch' })
  t.match(
    await person.page.getByRole('status').innerText(), /^4\. A found the key used for another body/,
    'a screen reader is told'
  )
  t.match(await person.page.getByRole('img').getAttribute('aria-label'), '4 requests. Charged once.')
  await person.snap('retry')
  const key = await person.page.getByText(/^[\da-f-]{36}$/).innerText()
  await person.press('New payment')
  t.not(await person.page.getByText(/^[\da-f-]{36}$/).innerText(), key, 'a new payment has a new key')
  t.same(await person.card(), ['Not charged yet.'])
  t.same(person.complaints, [])
})

t.test('G1: a double click charges once', async t => {
  const person = await Person.open(t, browser, server.url, { reducedMotion: 'no-preference' })
  await person.press('Double click')
  const [first, second, third] = await person.sentences(3)
  // Either may be the first to take the key.
  const [winner, loser] = String(first).includes('took the key') ? ['A', 'B'] : ['B', 'A']
  t.same([first, second].sort((a, b) => String(a).length - String(b).length).map(text => String(text).slice(2)), [
    `${winner} took the key, ran the payment and charged the card. The answer is kept. 201`,
    `${loser} found the key held by ${winner}, which is still at work: 409, try again in 1 s. ${NOT} 409`
  ])
  t.match(
    third,
    new RegExp(
      `^3 ${loser} found the key completed and sent ${winner}'s answer again. ${NOT} ` +
        'Same body as answer ., byte for byte. 201 replayed$'
    )
  )
  t.same(await person.card(), ['Charged once.', `by ${winner} €42.00`])
  await person.snap('double')
  t.same(person.complaints, [])
})

t.test('G7: an answer that is lost on the way is sent again; by keyboard alone', async t => {
  const person = await Person.open(t, browser, server.url)
  const { page } = person
  const focused = async (): Promise<string> => await page.evaluate('document.activeElement.innerText') as string
  const seen: string[] = []
  while (!seen.includes('Lose the answer')) {
    await page.keyboard.press('Tab')
    seen.push(await focused())
    if (seen.length > 20) throw new Error(`never came to the button: ${seen.join()}`)
  }
  t.same(
    seen, ['Pay', 'New payment', 'Retry', 'Retry elsewhere', 'Change the amount', 'Double click', 'Lose the answer']
  )
  await page.keyboard.press('Enter')
  t.same(await person.sentences(2), [
    '1 A charged the card and answered, but the connection broke on the way back. The client does not know that it ' +
      'has paid. no answer',
    '2 A found the key completed and sent its own answer again. ' +
      `${NOT} It names ${await page.getByText(/^ch_/).first().innerText()}, the charge that was made. 201 replayed`
  ])
  await person.rest()
  t.equal(await focused(), 'Lose the answer', 'the focus stays where it was')
  t.same(await person.card(), ['Charged once.', 'by A €42.00'])
  for (let i = 0; i < 7; i++) await page.keyboard.press('Tab')
  t.equal(
    await page.evaluate('document.activeElement.getAttribute("aria-label")'), 'Time line', 'the picture can be scrolled'
  )
  await page.keyboard.press('Tab')
  await page.keyboard.press('Enter')
  t.ok(await page.getByText('nothing: the connection broke').isVisible(), 'each request opens')
  await person.snap('lose')
  t.same(person.complaints, [])
})

t.test('G4: a failure frees the key, and the retry runs', async t => {
  const person = await Person.open(t, browser, server.url)
  await person.press('Let the server fail')
  t.same(await person.sentences(2), [
    `1 A failed before the charge. A 500 is not kept: the key is free again, so a retry will run. ${NOT} 500`,
    '2 A found the key free, ran the payment as attempt 2 and charged the card. 201'
  ])
  t.same(await person.card(), ['Charged once.', 'by A €42.00'])
  await person.snap('fail')
  t.same(person.complaints, [])
})

const KILLED = 'The key stays with A until its lease runs out: a holder has it for 3 s, unless it renews. no answer'
for (const [name, button, asks, sentences, card, next] of [
  ['before', 'Kill A before the charge', false, [
    `1 A was killed before it had charged the card. ${KILLED}`,
    'The lease had run out, so B took the key over: attempt 2. It ran the payment and charged the card. 201'
  ], ['Charged once.', 'by B €42.00'], 'after'],
  ['after', 'Kill A after the charge', false, [
    `1 A was killed after it had charged the card, before it could answer. ${KILLED}`,
    'The lease had run out, so B took the key over: attempt 2. It ran the payment and charged ' +
      'the card a second time. 201'
  ], ['Charged twice for one order.', 'by A €42.00', 'by B €42.00'], 'step'],
  ['ask', 'Kill A after the charge', true, [
    `1 A was killed after it had charged the card, before it could answer. ${KILLED}`,
    'The lease had run out, so B took the key over: attempt 2. It asked the provider, ' +
      'found the charge of the attempt before, and did not charge the card again. 201'
  ], ['Charged once.', 'by A €42.00'], 'without'],
  ['step', 'Kill A after the step', false, [
    `1 A charged the card in a step, and the step was recorded; then it was killed, before it could answer. ${KILLED}`,
    'The lease had run out, so B took the key over: attempt 2. It found the step recorded, ' +
      'went on after it without asking the provider, and answered. 201'
  ], ['Charged once.', 'by A €42.00'], 'ask']
] as const) {
  const title = `${name === 'step' ? 'G16' : 'G5'}: ${button}${asks ? ', and the handler asks the provider first' : ''}`
  t.test(title, { buffered: true }, async t => {
    const server = await startExample(t, process.execPath, '.build/examples/server.js')
    const person = await Person.open(t, browser, server.url)
    if (asks) await person.turnOn(/^Ask the provider first/)
    const pids = livingInstances(server)
    await person.press(button)
    const [first, ...rest] = await person.sentences(3)
    t.equal(first, sentences[0])
    t.equal(String(rest.pop()).slice(2), sentences[1])
    for (const told of rest) t.match(told, HELD_BY_DEAD)
    t.same(await person.card(), card)
    const drawn = async (what: string): Promise<number> => await person.page.locator(`#picture .${what}`).count()
    t.same([await drawn('coin'), await drawn('ask')], [card.length - 1, asks ? 1 : 0], 'charges, and questions')
    t.same(await person.next(), [next])
    const living = livingInstances(server)
    t.same([
      living.length, living.filter(pid => pids.includes(pid)).length
    ], [2, 1], 'a process has really died, and another has taken its place')
    for (const colorScheme of ['light', 'dark'] as const) {
      await person.page.emulateMedia({ colorScheme })
      t.same(await faint(person.page), [], `every text can be read (${colorScheme})`)
      await person.snap(`${name}-${colorScheme}`)
    }
    t.same(await nameless(person.page), [])
    t.same(person.complaints, [])
  })
}

t.test('without a key every retry charges', async t => {
  const person = await Person.open(t, browser, server.url)
  await person.turnOn(/^Without idempotency key/)
  await person.press('Lose the answer', 'Retry')
  t.same(await person.sentences(3), [
    '1 A charged the card and answered, but the connection broke on the way back. The client does not know that it ' +
      'has paid. no answer',
    '2 A ran the payment and charged the card a second time. Without a key it is just another payment. 201',
    '3 A ran the payment and charged the card yet again. Without a key it is just another payment. ' +
      'Not the body of answer 2: another charge. 201'
  ])
  t.same(await person.card(), ['Charged 3 times for one order.', 'by A €42.00', 'by A €42.00', 'by A €42.00'])
  await person.snap('without')
  await person.press('Double click')
  await person.sentences(2)
  t.equal((await person.card())[0], 'Charged twice for one order.')
  t.same(person.complaints, [])
})

t.test('on a phone', async t => {
  const person = await Person.open(t, browser, server.url, { viewport: { width: 360, height: 740 } })
  const { page } = person
  for (const [scene, name] of [
    ['lose', 'Lose the answer'], ['elsewhere', 'Retry elsewhere'], ['change', 'Change the amount']
  ] as const) {
    await person.press(name)
    t.same(
      await person.inSight('#times', `[data-scene=${scene}]`), [true, true],
      `the counter and the button are both in sight: ${name}`
    )
    await person.snapView(`phone-pressed-${name}`)
  }
  await person.sentences(4)
  await person.body(1)
  t.equal(await page.evaluate('document.documentElement.scrollWidth'), 360, 'nothing scrolls sideways')
  t.ok(await page.evaluate('scroller.scrollLeft > 0'), 'but the time line in its own frame, to its newest step')
  for (const colorScheme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme })
    t.same(await faint(page), [])
    await person.snap(`phone-${colorScheme}`)
  }
  t.same(person.complaints, [])
})

t.test('G16: a step that was recorded before the kill, on a phone', { buffered: true }, async t => {
  const server = await startExample(t, process.execPath, '.build/examples/server.js')
  const person = await Person.open(t, browser, server.url, { viewport: { width: 360, height: 740 } })
  const { page } = person
  const button = page.getByRole('button', { name: 'Kill A after the step', exact: true })
  t.match(
    await page.locator(`#${await button.getAttribute('aria-describedby')}`).innerText(),
    /^A step is a part of the handler whose result is recorded/, 'the term is explained where it comes first'
  )
  const [before] = (await page.locator('body').innerText()).split(/\bsteps?\b/i)
  t.match(before, /Kill A after the $/, '… and nowhere before')
  await person.press('Kill A after the step')
  t.same(
    await person.inSight('#times', '[data-scene=step]', '#ask'), [true, true, true],
    'the counter, the button, and what is next'
  )
  t.equal(await page.locator('#times').innerText(), '1×')
  t.equal(
    await page.locator('#lesson').innerText(),
    'A recorded step is not run again. Had A died before the record? Ask the provider first.'
  )
  t.equal(await page.evaluate('document.documentElement.scrollWidth'), 360, 'nothing scrolls sideways')
  for (const colorScheme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme })
    t.same(await faint(page), [])
    await person.snapView(`phone-step-${colorScheme}`)
  }
  t.same(await nameless(page), [])
  await person.turnOn(/^Ask the provider first/)
  t.same(await person.next(), ['after'], 'without a step, once the provider is asked first')
  await person.turnOn(/^Without idempotency key/)
  await person.press('Kill A after the step')
  t.same(await person.sentences(2), [
    '1 A was killed after it had charged the card, before it could answer. Nobody knows of this payment. no answer',
    '2 B ran the payment and charged the card a second time. Without a key it is just another payment. 201'
  ], 'without a key no step is recorded')
  t.same(person.complaints, [])
})

t.test('one action stands out after each scene; what sends again waits for something that was sent', async t => {
  const person = await Person.open(t, browser, server.url)
  const isEnabled = async (name: string): Promise<boolean> => await person.page.getByRole(
    'button', { name, exact: true }
  ).isEnabled()
  const again = ['Retry', 'Retry elsewhere', 'Change the amount']
  t.same(await Promise.all(again.map(isEnabled)), [false, false, false])
  await person.page.getByRole('button', { name: 'Retry', exact: true }).click({ force: true })
  t.same(await person.card(), ['Not charged yet.'], 'nothing was sent')
  t.same(await person.next(), ['pay'])
  for (const [name, then] of [
    ['Pay', 'retry'], ['Retry', 'elsewhere'], ['Retry elsewhere', 'change'], ['Change the amount', 'double'],
    ['Double click', 'lose'], ['Lose the answer', 'fail'], ['Let the server fail', 'before'], ['New payment', 'pay']
  ] as const) {
    await person.press(name)
    t.same(await person.next(), [then], name)
    t.same(await Promise.all(again.map(isEnabled)), Array(3).fill(name !== 'New payment'))
  }
  await person.turnOn(/^Without idempotency key/)
  t.same(await person.next(), ['lose'])
  t.same(person.complaints, [])
})

t.test('an instance that is killed from outside is drawn as dead', async t => {
  const server = await startExample(t, process.execPath, '.build/examples/server.js')
  const person = await Person.open(t, browser, server.url)
  await person.press('Pay')
  const [pid] = livingInstances(server)
  t.equal(await person.page.locator('#picture .kill').count(), 0)
  process.kill(Number(pid), 'SIGKILL')
  await person.page.locator('#picture text', { hasText: /^killed$/ }).waitFor()
  await person.page.locator('#picture text', { hasText: /^started again$/ }).waitFor()
  t.equal(await person.page.locator('#picture .kill').count(), 1)
  await person.snap('outside')
})

t.test('instances end with their parent, however it ends', async t => {
  await Promise.all((['SIGTERM', 'SIGKILL'] as const).map(async signal => {
    const server = await startExample(t, process.execPath, '.build/examples/server.js')
    const person = await Person.open(t, browser, server.url)
    const pids = livingInstances(server)
    t.equal(pids.length, 2)
    const gone = once(server.process, 'exit')
    server.process.kill(signal)
    t.same(await gone, signal === 'SIGTERM' ? [0, null] : [null, signal])
    await until(() => !livingInstances().some(pid => pids.includes(pid)), `no instance is left after ${signal}`)
    await person.page.getByText('The server does not answer. Is it still running?').waitFor()
    t.equal(await person.page.getByRole('button', { name: 'Pay', exact: true, disabled: true }).count(), 1)
  }))
})
