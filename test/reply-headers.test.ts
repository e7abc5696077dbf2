import t from 'tap'
import { stopRedis } from './fixtures/app.ts'
import { proveHeaders } from './fixtures/reply-headers.ts'

t.teardown(stopRedis)
proveHeaders(t)
