/** What the suite consists of. */
export interface Table { columns: string[], rows: string[][] }

export interface Section<Data = unknown> {
  title: string
  notes?: string[]
  table: Table
  /** What goes into results.json. */
  data: Data
}

export interface Part<Data = unknown> {
  /** `npm run bench -- <name>` */
  name: string
  run: () => Promise<Section<Data>>
}
