/** What happens on the stage, as the page is told of it: one kind of message, one clock (the parent's). */
export type Name = 'a' | 'b'

/** What is to go wrong with a request. */
export type Fault = 'lose' | 'fail' | 'die-before' | 'die-after'

/** What the page asks for: one request of the client to one instance. */
export interface Order {
  order: string
  to: Name
  /** Without one, the request carries no idempotency key. */
  key?: string
  body: string
  fault?: Fault
  /** The handler asks the payment provider first when this is not the first attempt. */
  ask?: boolean
  /** The handler charges in a step, so that the charge is recorded under the key. */
  step?: boolean
}

export interface Answer {
  /** 0: there was none. */
  status: number
  replayed: boolean
  retryAfter: number
  /** Header lines as they came. */
  head: string
  body: string
}

/** Of the whole stage, whatever the payment. */
export type Life = { what: 'starting' | 'up' | 'down', instance: Name }

/** Of one request of one payment. */
export type RequestEvent = { request: number } & (
  | { what: 'sent', to: Name, head: string, body: string, lose: boolean }
  | { what: 'answered' } & Answer
  | { what: 'lost', dead: boolean }
  | { what: 'runs', instance: Name, attempt: number }
  | { what: 'ran', instance: Name, status: number }
  | { what: 'told', instance: Name, event: string }
  | { what: 'asked', instance: Name, found: boolean }
  | { what: 'charged', instance: Name, id: string }
  | { what: 'killed', instance: Name }
)

/** Of the key of one payment, as the store has seen it. */
export type StoreEvent = { instance: Name } & (
  | { what: 'claimed', outcome: 'acquired' | 'held' | 'abandoned' | 'completed', attempt: number, until: number }
  | { what: 'renewed', until: number }
  | { what: 'kept' }
  | { what: 'freed' }
  | { what: 'recorded', step: string }
  | { what: 'recalled', steps: string[] }
)

export type Happening = { at: number, order: string } & (Life | RequestEvent | StoreEvent)
