import t from 'tap'
import { stopRedis } from '../fixtures/app.ts'
import { stuckKeys } from '../fixtures/stuck-keys.ts'

t.teardown(stopRedis)

stuckKeys(t, 'HTTP/1.1')
