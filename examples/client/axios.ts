import axios, { type AxiosResponse } from 'axios'
import axiosRetry, { exponentialDelay } from 'axios-retry'

/**
 * By default axios-retry sends a POST again after a network error, with or without a key, but
 * not after a timeout, a 429 or a 5xx; and its `timeout` is for all attempts together.
 *
 * Make the key outside: a request interceptor runs for each attempt, and would make one for each.
 */
const client = axios.create({ timeout: 10_000 })

axiosRetry(client, {
  retries: 5,
  shouldResetTimeout: true,
  // With jitter, and not before Retry-After.
  retryDelay: exponentialDelay,
  retryCondition ({ code, response }) {
    if (code === 'ERR_CANCELED') return false
    // No response (a network error, a timeout); a 5xx, or any response that was cut off within its body.
    if (response === undefined || code === 'ERR_BAD_RESPONSE') return true
    return response.status === 429 || (response.data as { code?: string } | null)?.code === 'idempotency_in_progress'
  }
})

/** `key`: one for each operation, made before the first attempt and stored with it. */
export async function pay (url: string, order: unknown, key: string): Promise<AxiosResponse> {
  return await client.post(url, JSON.stringify(order), {
    headers: { 'content-type': 'application/json', 'idempotency-key': key }
  })
}
