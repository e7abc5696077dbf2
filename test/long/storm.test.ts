import t from 'tap'
import { storm } from '../fixtures/storm/storm.ts'

t.test('G1, G2, G5, G6: a storm of clients and faults leaves one answer per key, and no key stuck', async t => {
  const { distinct, unexplained, repeated, stuck, wrong, kills, freezes, evidence, seed } = await storm(
    { keys: 150, requests: 3000, every: 250 }
  )
  t.comment(`seed ${seed}, ${kills} kills, ${freezes} freezes`)
  t.equal(distinct, 1, 'every client of a key saw the same bytes')
  t.same(unexplained, [], 'a key was executed again only after a fault')
  t.same(repeated, [], 'no key was executed again once a client had its answer')
  t.same(stuck, [], 'every key came to its answer')
  t.equal(wrong, 0, 'another body never got the answer')
  t.ok(kills >= 1 && freezes >= 1, 'there were faults of both kinds')
  if (!t.passing()) t.comment(JSON.stringify(evidence))
})
