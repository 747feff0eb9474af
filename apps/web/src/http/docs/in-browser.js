// Runs in the page of /docs, before Swagger UI starts there. With it the page shows exactly what came, and sends
// exactly what was typed. By itself Swagger UI parses JSON before it shows it, which rounds integers past 2^53, and
// takes a form's body to be JSON too, or sends each character of it as a pair.
{
  const start = globalThis.SwaggerUIBundle
  const formType = 'application/x-www-form-urlencoded'

  /** Breaks JSON into indented lines. Its tokens, digits and escapes stay as they are. */
  const indent = (json) => {
    let [text, depth] = ['', 0]
    const newLine = () => `\n${'  '.repeat(depth)}`
    for (const [token] of json.matchAll(/"(?:[^"\\]|\\.)*"|[[{]\s*[\]}]|[[\]{},:]|[^\s"[\]{},:]+/gs)) {
      if (token === '{' || token === '[') {
        depth++
        text += token + newLine()
      } else if (token === '}' || token === ']') {
        depth--
        text += newLine() + token
      } else if (token === ',') text += token + newLine()
      else text += token === ':' ? ': ' : token
    }
    return text
  }

  /** The body of the request that is being sent, as it was typed. */
  let typed

  const exact = {
    wrapComponents: {
      responseBody: (Original, { React, getComponent }) => (props) => {
        const isJson = typeof props.content === 'string' && /json/i.test(props.contentType)
        if (!isJson) return React.createElement(Original, props)
        const code = { language: 'json', downloadable: true, fileName: 'response.json', canCopy: true }
        return React.createElement('div', null,
          React.createElement('h5', null, 'Response body'),
          React.createElement(getComponent('HighlightCode', true), code, indent(props.content)))
      },
      // Its own "Reset" parses the body that it puts back as JSON.
      parameters: (Original, { React }) => (props) => {
        const { oas3Actions, oas3Selectors } = props
        const onResetClick = (pathMethod) => {
          const value = oas3Selectors.selectDefaultRequestBodyValue(...pathMethod)
          oas3Actions.setRequestBodyValue({ value, pathMethod })
        }
        return React.createElement(Original, { ...props, onResetClick })
      },
    },
    statePlugins: {
      spec: {
        wrapActions: {
          executeRequest: (execute, { oas3Selectors }) => (request) => {
            typed = oas3Selectors.requestBodyValue(request.pathName, request.method)
            return execute(request)
          },
        },
      },
    },
  }

  const requestInterceptor = (request) => {
    if (request.headers?.['Content-Type'] === formType && typeof typed === 'string') request.body = typed
    return request
  }

  const startExact = (config) => start({ ...config, plugins: [...config.plugins, exact], requestInterceptor })
  globalThis.SwaggerUIBundle = Object.assign(startExact, start)
}
