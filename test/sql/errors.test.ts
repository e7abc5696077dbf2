import t from 'tap'
import { isRolledBack, isSerializationFailure, sqlStateOf } from '../../lib/sql/database.ts'

t.test('G18: the SQLSTATE of an error is found in what libraries put around it, and nowhere else', async t => {
  const cases: Array<[unknown, string | undefined]> = [
    [{ code: '40001' }, '40001'],
    [{ code: 'P0001' }, 'P0001'],
    [{ cause: { code: '40P01' } }, '40P01'],
    [{ code: 'P2010', meta: { code: '40001' } }, '40001'],
    [{ code: 'P2010', meta: { driverAdapterError: { cause: { originalCode: '40001' } } } }, '40001'],
    [{ code: 'P2034' }, '40001'],
    [{ code: 'P2034', meta: { driverAdapterError: { cause: { originalCode: '40P01' } } } }, '40P01'],
    [{ code: 'P2025' }, undefined],
    [{ code: 'EPIPE' }, undefined],
    [{ code: 'ECONNRESET' }, undefined],
    [{ code: 40001 }, undefined],
    [undefined, undefined],
    ['40001', undefined]
  ]
  for (const [error, state] of cases) t.equal(sqlStateOf(error), state, JSON.stringify(error))
  const circular: { cause?: unknown } = {}
  circular.cause = circular
  t.equal(sqlStateOf(circular), undefined)
})

t.test('G18: what an error in the place of COMMIT\'s answer says', async t => {
  for (const state of ['23505', '23514', '40001', 'P0001', '25P02']) t.ok(isRolledBack(state), state)
  for (const state of [undefined, '57P01', '57P02', '08006', '08003', '58030', 'XX000', '40003']) {
    t.notOk(isRolledBack(state), String(state))
  }
  t.same(['40001', '40P01', '40003', undefined].map(isSerializationFailure), [true, true, false, false])
})
