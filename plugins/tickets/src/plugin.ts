// Tickets: numbers in order, unique and without gaps, for waiting lines. A request becomes a part of an entry
// (web/waiting.ts), the consumer numbers it (consumer/apply.ts), and the log keeps it.
import { definePlugin } from '@gearbox/runtime/plugin.ts'
import { apply } from './consumer/apply.ts'
import { rebind } from './consumer/rebind.ts'
import { verify } from './consumer/verify.ts'
import { settings } from './settings.ts'
import { migrations } from './tables.ts'
import { ticketRoutes } from './web/routes.ts'

/** The plugin, as `PLUGINS` loads it. */
export default definePlugin({
  name: 'tickets',
  settings,
  web: ticketRoutes,
  consumer: { migrations, apply },
  verify,
  rebind,
})
