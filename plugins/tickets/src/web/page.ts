// The page of one number, for the person who waits. All that it says is in its HTML; the script only fetches it again
// and replaces what is new, and without scripts the browser reloads it.
import { createHash } from 'node:crypto'
import type { Place } from '../lines.ts'

const style = `
:root{color-scheme:light dark;--back:#f3f4f1;--card:#fff;--ink:#16211c;--soft:#59665f;--line:#dde2dd;--accent:#0b6b4f;
--on-accent:#fff}
@media(prefers-color-scheme:dark){:root{--back:#101613;--card:#18211d;--ink:#edf3ef;--soft:#9fb0a7;--line:#2b3832;
--accent:#4fd1a5;--on-accent:#06231a}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;min-height:100svh;display:grid;place-items:center;padding:16px;background:var(--back);
color:var(--ink);font:400 1rem/1.5 system-ui,sans-serif}
main{width:100%;max-width:26rem;background:var(--card);border:1px solid var(--line);border-radius:16px;
padding:28px 24px;text-align:center}
h1{margin:0 0 20px;font-size:1.125rem;line-height:1.3;font-weight:600;overflow-wrap:anywhere}
p{margin:0;text-wrap:balance;overflow-wrap:anywhere}
.label,.hint{color:var(--soft);font-size:.875rem}
.number{margin:2px 0 20px;font-weight:700;line-height:1.1;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.d4{font-size:5.5rem}.d7{font-size:3.25rem}.d11{font-size:2rem}.d16{font-size:1.375rem}
.status{padding-top:20px;border-top:1px solid var(--line);font-size:1.375rem;line-height:1.3;font-weight:600}
.wait{margin-top:4px;color:var(--soft)}
.hint{margin-top:20px}
.called .status{margin-top:0;padding:16px;border:0;border-radius:12px;background:var(--accent);color:var(--on-accent)}
.called .wait{margin-top:12px}
.given_up .number{color:var(--soft);text-decoration:line-through;text-decoration-thickness:.06em}
`

/**
 * Runs again after each answer, as the page says how often; never after the number was called or given up. It goes on
 * in a tab that is not shown, whose title then says so.
 */
const script = `
const main=document.querySelector('main');
let timer,busy=false;
const later=()=>{clearTimeout(timer);const s=Number(main.dataset.seconds);if(s>0)timer=setTimeout(update,s*1000)};
const update=async()=>{
if(busy)return;
busy=true;
try{
const reply=await fetch(location.href,{headers:{accept:'text/html'},cache:'no-store'});
if(reply.ok){
const page=new DOMParser().parseFromString(await reply.text(),'text/html');
const next=page.querySelector('main');
if(next){
document.title=page.title;main.className=next.className;main.dataset.seconds=next.dataset.seconds;
for(const name of ['status','wait','hint']){
const [old,now]=[main,next].map((part)=>part.querySelector('.'+name));
if(old.textContent!==now.textContent)old.textContent=now.textContent;
}}}
}catch{}
busy=false;
later();
};
document.addEventListener('visibilitychange',()=>{if(!document.hidden&&Number(main.dataset.seconds)>0)update()});
later();
`

const policy = [
  "default-src 'none'", `style-src '${hashOf(style)}'`, `script-src '${hashOf(script)}'`, "connect-src 'self'",
  "base-uri 'none'", "form-action 'none'", "frame-ancestors 'self'",
].join('; ')

/** Headers of the page. Its address can have a receipt, which is for nobody else. */
export const pageHeaders = {
  'content-type': 'text/html; charset=utf-8',
  'content-security-policy': policy,
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
} as const

/**
 * The page of a number.
 * @param holdS TICKETS_HOLD_S
 */
export function renderPage (name: string, place: Place, holdS: number): string {
  const { number, state } = place
  const { status, wait, hint } = describe(place, holdS)
  const seconds = refreshSeconds(place)
  const reload = seconds === 0 ? '' : `<noscript><meta http-equiv="refresh" content="${seconds}"></noscript>\n`
  const digits = [4, 7, 11, 16].find((most) => String(number).length <= most) ?? 16
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
${reload}<title>${number}: ${escape(status)}</title>
<style>${style}</style>
</head>
<body>
<main class="${state}" data-seconds="${seconds}">
<h1>${escape(name)}</h1>
<p class="label">Your number</p>
<p class="number d${digits}">${number}</p>
<p class="status" role="status">${escape(status)}</p>
<p class="wait">${escape(wait)}</p>
<p class="hint">${escape(hint)}</p>
</main>
<script>${script}</script>
</body>
</html>
`
}

/** Those who are far behind need no news every few seconds, and there are many of them. 0: there will be none. */
function refreshSeconds ({ state, ahead }: Place): number {
  return state === 'waiting' ? Math.min(60, Math.max(5, Math.ceil(ahead / 20))) : 0
}

function describe (
  { state, ahead, waitSeconds }: Place, holdS: number
): { status: string, wait: string, hint: string } {
  if (state === 'called') {
    const kept = holdS === 0 ? '' : `Your place is kept for ${duration(holdS)} from the call.`
    return { status: 'It is your turn', wait: kept, hint: 'Please have your number ready.' }
  }
  if (state === 'given_up') {
    return { status: 'This place was given up', wait: '', hint: 'If you still want one, take a new number.' }
  }
  const status = ahead === 0 ? 'You are next' : `${ahead} ahead of you`
  const wait = waitSeconds === null ? 'No estimate yet' : `About ${duration(waitSeconds)} to wait`
  return { status, wait, hint: 'This page updates by itself.' }
}

function duration (seconds: number): string {
  if (seconds < 90) return seconds <= 60 ? 'a minute' : '2 minutes'
  const minutes = Math.ceil(seconds / 60)
  if (minutes < 90) return `${minutes} minutes`
  const hours = Math.round(minutes / 60)
  return hours < 48 ? `${hours} hours` : `${Math.round(hours / 24)} days`
}

function escape (text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}

function hashOf (text: string): string {
  return `sha256-${createHash('sha256').update(text).digest('base64')}`
}
