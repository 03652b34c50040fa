/* Browsers start no worker from a page on disk (file://). There, a hidden frame takes its place: it loads the worker's
   script, and messages go between it and the page. Served over http, this file does nothing. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = null
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const inside = this.frame.contentWindow
      this.ready = new Promise((resolve) => this.frame.addEventListener("load", resolve, { once: true }))
      window.addEventListener("message", (e) => {
        if (e.source !== inside) return
        this.dispatchEvent(new MessageEvent("message", { data: e.data }))
        if (this.onmessage) this.onmessage(e)
      })
      const load = `(url) => new Promise((resolve, reject) => {
        const s = document.createElement("script")
        s.src = url; s.onload = resolve; s.onerror = reject
        document.body.appendChild(s)
      })`
      inside.document.open()
      inside.document.write(
        `<html><body><script>
          var postMessage = (data) => parent.postMessage(data, "*")
          var importScripts = (...urls) => urls.reduce((done, url) => done.then(() => (${load})(url)), Promise.resolve())
        </script><script src="${url}"></script></body></html>`
      )
      inside.document.close()
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
