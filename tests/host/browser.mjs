// What a person does in the browser: open a workflow, run it, read a node's help, look through the templates.
//   node browser.mjs URL WORKFLOW NODE-ID FOLDER PLAYWRIGHT CHROMIUM
// Writes graph.png, help.png and templates.png into FOLDER and prints one JSON object.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const [url, workflow, node, folder, playwright, executablePath] = process.argv.slice(2)
const { chromium } = createRequire(`${playwright}/`)('playwright-core')
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage'] })
const report = { faults: [], host: [] } // of this script; of the host's page, where no script is ours
try {
  const context = await browser.newContext({ viewport: { width: 1600, height: 1000 } })
  const page = await context.newPage()
  page.on('pageerror', (e) => report.host.push(String(e)))
  await page.route('**/*', (route) => {
    const asked = new URL(route.request().url())
    const near = ['data:', 'blob:'].includes(asked.protocol) || asked.host === new URL(url).host
    return near ? route.continue() : route.abort()
  })
  // the page opens with a workflow of its own, whose missing model it would mark in ours
  const settings = { 'Comfy.TutorialCompleted': true, 'Comfy.Workflow.ShowMissingModelsWarning': false }
  for (const [name, value] of Object.entries(settings)) {
    await context.request.post(`${url}/api/settings/${name}`, { data: String(value) })
  }
  await page.goto(url, { waitUntil: 'domcontentloaded', timeout: 120000 })
  await page.waitForFunction((id) => globalThis.app?.graph && globalThis.LiteGraph?.registered_node_types[id], node, { timeout: 120000 })

  report.missing = await page.evaluate(async (saved) => {
    await globalThis.app.loadGraphData(saved)
    const known = globalThis.LiteGraph.registered_node_types
    return globalThis.app.graph._nodes.map((n) => n.type).filter((type) => !known[type])
  }, JSON.parse(readFileSync(workflow, 'utf8')))
  report.widgets = await page.evaluate((id) => {
    const found = globalThis.app.graph._nodes.find((n) => n.type === id)
    return Object.fromEntries(found.widgets.map((w) => [w.name, w.value]))
  }, node)
  report.end = await page.evaluate(async () => {
    const { app } = globalThis
    const ended = new Promise((done) => {
      for (const kind of ['success', 'error', 'interrupted']) app.api.addEventListener(`execution_${kind}`, () => done(kind))
      setTimeout(() => done('timeout'), 200000)
    })
    await app.queuePrompt(0, 1)
    return ended
  })
  await page.waitForFunction(() => globalThis.app.graph._nodes.some((n) => n.imgs?.length), null, { timeout: 20000 })
    .catch(() => {})
  report.pictures = await page.evaluate(() => globalThis.app.graph._nodes.flatMap((n) => n.imgs ?? []).map((i) => [i.naturalWidth, i.naturalHeight]))
  report.marked = await page.evaluate(() => globalThis.app.graph._nodes.filter((n) => n.has_errors).map((n) => n.type))
  await page.screenshot({ path: `${folder}/graph.png` })

  await page.evaluate((id) => {
    const { canvas, graph } = globalThis.app
    canvas.selectNode(graph._nodes.find((n) => n.type === id))
    canvas.setDirty(true, true)
  }, node)
  await page.waitForTimeout(1000)
  const info = page.locator('[data-testid="info-button"], button:has(.icon-\\[lucide--info\\])').first()
  if (await info.count()) await info.click()
  await page.waitForTimeout(2500)
  report.help = await page.evaluate(() => document.body.innerText)
  await page.screenshot({ path: `${folder}/help.png` })

  await page.evaluate(() => globalThis.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  await page.waitForTimeout(4000)
  report.templates = await page.evaluate(() => document.body.innerText)
  await page.screenshot({ path: `${folder}/templates.png` })
} catch (e) {
  report.faults.push(String(e))
} finally {
  await browser.close()
}
console.log(JSON.stringify(report))
