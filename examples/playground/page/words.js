// @ts-check
/** The story in plain words. */

/** @typedef {import('./story.js').Story} Story */
/** @typedef {import('./story.js').Sent} Sent */

/** @param {string} name */
const upper = name => name.toUpperCase()

/** What became of a request that is over. @param {Story} story @param {Sent} sent */
export function sentence (story, sent) {
  const to = upper(sent.to)
  const { answer, run, charge, held } = sent
  const nothing = 'The card was not charged.'
  if (answer === undefined) {
    if (!sent.dead) {
      const without = sent.charge === undefined && run === undefined
      return without
        ? `${to} sent the answer again, and the connection broke on the way back. ${nothing}`
        : `${to} charged the card and answered, but the connection broke on the way back. ` +
          'The client does not know that it has paid.'
    }
    const when = charge === undefined
      ? 'before it had charged the card'
      : 'after it had charged the card, before it could answer'
    const end = sent.told.includes('step-recorded')
      ? 'charged the card in a step, and the step was recorded; then it was killed, before it could answer'
      : `was killed ${when}`
    const left = story.leases.length === 0
      ? 'Nobody knows of this payment.'
      : `The key stays with ${to} until its lease runs out: a holder has it for 3 s, unless it renews.`
    return `${to} ${end}. ${left}`
  }
  if (answer.replayed) {
    const by = story.kept?.by
    const whose = by === sent.to ? 'its own' : `${upper(by ?? '')}'s`
    return `${to} found the key completed and sent ${whose} answer again. ${nothing}`
  }
  if (sent.told.includes('mismatched')) {
    return `${to} found the key used for another body: a clear 409, and nothing ran. ${nothing}`
  }
  if (sent.told.includes('conflicted')) {
    const by = upper(held?.by ?? '')
    const why = held?.deadAt === undefined
      ? `by ${by}, which is still at work`
      : `by ${by}, which is dead, but its lease has not run out`
    return `${to} found the key held ${why}: 409, try again in ${answer.retryAfter} s. ${nothing}`
  }
  if (answer.status >= 500) {
    const next = story.leases.length === 0
      ? 'The client may try again.'
      : 'A 500 is not kept: the key is free again, so a retry will run.'
    return `${to} failed before the charge. ${next} ${nothing}`
  }
  const attempt = run?.attempt ?? 1
  const before = charge === undefined ? story.charges.length : charge.nth - 1
  const charged = before === 0
    ? 'and charged the card'
    : `and charged the card ${before === 1 ? 'a second time' : 'yet again'}`
  if (sent.told.includes('step-reused')) {
    return `The lease had run out, so ${to} took the key over: attempt ${attempt}. It found the step recorded, ` +
      'went on after it without asking the provider, and answered.'
  }
  if (sent.found === true) {
    return `The lease had run out, so ${to} took the key over: attempt ${attempt}. It asked the provider, ` +
      'found the charge of the attempt before, and did not charge the card again.'
  }
  if (attempt > 1) {
    const dead = story.leases.some(({ how }) => how === 'expired')
    const asked = sent.found === false ? ', asked the provider, found no charge,' : ''
    return dead
      ? `The lease had run out, so ${to} took the key over: attempt ${attempt}. It ran the payment${asked} ${charged}.`
      : `${to} found the key free, ran the payment as attempt ${attempt}${asked} ${charged}.`
  }
  return story.leases.length === 0
    ? `${to} ran the payment ${charged}. ` +
      `${before === 0 ? 'Nobody keeps the answer.' : 'Without a key it is just another payment.'}`
    : `${to} took the key, ran the payment ${charged}. The answer is kept.`
}

/** How an answer compares with the first one of its payment. @param {Story} story @param {Sent} sent */
export function comparison (story, sent) {
  const [first] = story.requests.filter(({ answer }) => answer?.status === 201)
    .sort((a, b) => (a.end ?? 0) - (b.end ?? 0))
  if (sent.answer?.status !== 201 || first === undefined) return ''
  if (first === sent) return sent.answer.replayed ? `It names ${story.charges[0]?.id}, the charge that was made.` : ''
  return first.answer?.body === sent.answer.body
    ? `Same body as answer ${first.nth}, byte for byte.`
    : `Not the body of answer ${first.nth}: another charge.`
}

/** @param {number} count */
export const times = count => count === 1 ? 'once' : count === 2 ? 'twice' : `${count} times`

/** @param {Story} story */
export function verdict (story) {
  const { length } = story.charges
  return length === 0 ? 'Not charged yet.' : length === 1 ? 'Charged once.' : `Charged ${times(length)} for one order.`
}

/** What a key cannot do, where it was seen. @param {Story} story */
export function caveat (story) {
  return story.charges.length > 1 && story.leases.length > 0
    ? 'This is what a key alone does not solve: A died after the charge, and before its answer was kept.'
    : ''
}

/** What is to be learned. @param {Story} story @param {boolean} ask */
export function lesson (story, ask) {
  const { length } = story.requests.filter(({ end }) => end !== undefined)
  if (story.charges.length > 1) {
    return story.leases.length === 0
      ? 'Without a key nobody can tell a retry from a new payment.'
      : ask ? '' : 'Let the handler charge in a step, and kill it again.'
  }
  if (story.charges.length === 1 && story.steps.some(({ how }) => how === 'recalled')) {
    return `A recorded step is not run again.${ask ? '' : ' Had A died before the record? Ask the provider first.'}`
  }
  if (story.charges.length === 1 && story.asked.some(({ found }) => found)) {
    return 'The handler saw attempt 2 and looked before it leapt: the key alone could not have known.'
  }
  if (story.charges.length === 1 && length > 1) return `${length} requests, one payment.`
  return story.charges.length === 1 ? 'Now send it again, or break something.' : ''
}
