// Small charts side by side as one SVG, by hand. Its colours follow the reader's: light or dark.

export interface Line {
  readonly name: string
  readonly points: ReadonlyArray<readonly [x: number, y: number]>
}

export interface Chart {
  readonly title: string
  /** What x is; its scale is logarithmic. */
  readonly x: string
  readonly lines: readonly Line[]
}

const [width, height, columns, margin] = [420, 260, 2, { left: 62, right: 18, top: 44, bottom: 44 }] as const
const style = `
  svg { color-scheme: light dark; --back: #fff; --ink: #24292f; --faint: #d0d7de; --a: #0550ae; --b: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    svg { --back: #0d1117; --ink: #e6edf3; --faint: #30363d; --a: #79c0ff; --b: #ffa657 }
  }
  text { font: 12px system-ui, sans-serif; fill: var(--ink) }
  .title { font-weight: 600 } .end { text-anchor: end } .middle { text-anchor: middle }
  .back { fill: var(--back) } .grid { stroke: var(--faint) } .l0 { stroke: var(--a) } .l1 { stroke: var(--b) }
  polyline { fill: none; stroke-width: 2 } circle, .key { fill: currentColor; stroke: none }
  .l0.key { color: var(--a); fill: var(--a) } .l1.key { color: var(--b); fill: var(--b) }`

export function draw (charts: readonly Chart[]): string {
  const drawable = charts.filter(({ lines }) => lines.some(({ points }) => points.length > 0))
  const [w, h] = [width * columns, height * Math.ceil(drawable.length / columns)]
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${w} ${h}" width="${w}" height="${h}" role="img">
<style>${style}
</style>
<rect class="back" width="${w}" height="${h}"/>
${drawable.map((chart, i) =>
  `<g transform="translate(${i % columns * width} ${Math.floor(i / columns) * height})">\n${drawChart(chart)}\n</g>`)
    .join('\n')}
</svg>
`
}

function drawChart ({ title, x, lines }: Chart): string {
  const points = lines.flatMap(({ points }) => points)
  const xs = [...new Set(points.map(([at]) => at))].sort((a, b) => a - b)
  const ticks = ticksTo(Math.max(...points.map(([, y]) => y)))
  const [first, last] = [Math.log(xs[0]!), Math.log(xs.at(-1)!)]
  const atX = (value: number): number =>
    round(margin.left +
      (width - margin.left - margin.right) * (last === first ? 0.5 : (Math.log(value) - first) / (last - first)))
  const atY = (value: number): number =>
    round(height - margin.bottom - (height - margin.top - margin.bottom) * value / ticks.at(-1)!)
  return [
    `<text class="title" x="12" y="20">${escape(title)}</text>`,
    ...ticks.map((tick) =>
      `<path class="grid" d="M${margin.left} ${atY(tick)}H${width - margin.right}"/><text class="end" ` +
        `x="${margin.left - 8}" y="${atY(tick) + 4}">${short(tick)}</text>`),
    ...xs.map((at) =>
      `<text class="${at === xs.at(-1) ? 'end' : 'middle'}" ` +
        `x="${at === xs.at(-1) ? width - margin.right + 8 : atX(at)}" ` +
        `y="${height - margin.bottom + 18}">${short(at)}</text>`),
    `<text class="middle" x="${(margin.left + width - margin.right) / 2}" y="${height - 8}">${escape(x)}</text>`,
    ...lines.flatMap(({ name, points }, i) => [
      `<polyline class="l${i}" points="${points.map(([px, py]) => `${atX(px)},${atY(py)}`).join(' ')}"/>`,
      ...points.map(([px, py]) => `<circle class="l${i} key" cx="${atX(px)}" cy="${atY(py)}" r="3.5"/>`),
      ...lines.length > 1
        ? [`<text class="l${i} key end" x="${width - margin.right}" y="${20 + 15 * i}">${escape(name)}</text>`]
        : [],
    ]),
  ].join('\n')
}

/** Zero and up to five round numbers above it, the last at or above `most`. */
export function ticksTo (most: number): number[] {
  const rough = (most || 1) / 4
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((step) => step >= rough)!
  return Array.from({ length: Math.ceil(most / step) + 1 }, (_, i) => round(i * step))
}

function short (value: number): string {
  const [divisor, unit] = value >= 1e6 ? [1e6, 'M'] : value >= 1000 && value % 100 === 0 ? [1000, 'k'] : [1, '']
  return `${(value / divisor).toLocaleString('en')}${unit}`
}

/** To what SVG and labels need. */
function round (value: number): number {
  return Math.round(value * 1000) / 1000
}

function escape (text: string): string {
  return text.replace(/[&<>]/g, (character) => `&#${character.charCodeAt(0)};`)
}
