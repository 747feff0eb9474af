// The POST routes of plugins whose plainest requests the fast lane answers: each a prefix, with what the plugin does.
// server.ts fills it at the start, connections ask it for what is no increment.
import type { FastPostHandler, FastReply } from '@gearbox/runtime/plugin.ts'
import type { Match } from './head.ts'
import { PostMatcher, type PostMatcherOptions } from './post-matcher.ts'

interface Post {
  readonly matcher: PostMatcher
  readonly handler: FastPostHandler
}

/** All of them. Like a matcher it has the parts of the last whole request. */
export class FastPosts {
  readonly #posts: Post[] = []
  #last: Post | undefined

  add (options: PostMatcherOptions, handler: FastPostHandler): void {
    this.#posts.push({ matcher: new PostMatcher(options), handler })
  }

  /** Reads one request at the start of bytes [start, end). */
  read (bytes: Buffer, start: number, end: number): Match {
    let isPartial = false
    for (const post of this.#posts) {
      const match = post.matcher.read(bytes, start, end)
      if (match === 'whole') {
        this.#last = post
        return match
      }
      isPartial ||= match === 'partial'
    }
    return isPartial ? 'partial' : 'other'
  }

  /** Where the last whole request ends. */
  get end (): number {
    return this.#last?.matcher.end ?? 0
  }

  /** Has the plugin answer the last whole request. */
  handle (reply: FastReply): void {
    this.#last?.handler(this.#last.matcher.name, reply)
  }
}
