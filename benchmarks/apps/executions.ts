/** How often a handler of this process ran: a replay that runs the handler is no replay. */
let count = 0

export const executed = (): void => { count++ }
export const executions = (): number => count
