// Metrics of a plugin in its worker's registry, under the plugin's name.
import { counter, durations, gauge, type Registry } from '@gearbox/runtime/metrics.ts'
import type { PluginMetrics } from '@gearbox/runtime/plugin.ts'

/**
 * The metrics that a plugin can add.
 * @throws Error for a name that does not begin with `gearbox_NAME_`; where that is a plural, one of them will do, too
 */
export function pluginMetrics (plugin: string, registry: Registry): PluginMetrics {
  const prefix = `gearbox_${plugin.replaceAll('-', '_')}_`
  const singular = prefix.replace(/s_$/, '_')
  const checked = (name: string): string => {
    if ((name.startsWith(prefix) || name.startsWith(singular)) && /^[a-z0-9_]+$/.test(name)) return name
    throw new Error(`the metric ${JSON.stringify(name)} must begin with ${prefix}, in lower case`)
  }
  return {
    counter: (name, help, read) => counter(registry, checked(name), help, read),
    gauge: (name, help, aggregator, read) => gauge(registry, checked(name), help, aggregator, read),
    durations: (name, help) => durations(registry, checked(name), help),
  }
}
