/**
 * A statement cut at its parameters `$1` to `$9`, and which value stands at each cut: for libraries with marks of their
 * own.
 */
export function splitParameters (text: string): { strings: string[], order: number[] } {
  const parts = text.split(/\$(\d)/)
  return {
    strings: parts.filter((_part, index) => index % 2 === 0),
    order: parts.filter((_part, index) => index % 2 === 1).map(digit => Number(digit) - 1)
  }
}
