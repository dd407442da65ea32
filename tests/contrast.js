// List the texts in sight in panels and prose: words, place, colour and opacity. Called by measure_contrast in browser.py.
() => {
  const opacity = e => e ? getComputedStyle(e).opacity * opacity(e.parentElement) : 1
  const ours = e => e.closest('.nl-panel, .jp-RenderedMarkdown')
  const off = e => e.closest(':disabled, [disabled], .modebar, .noUi-origin')
  const found = []
  const note = (words, element, box) => {
    if (!box || box.width < 3 || box.height < 3 || !element.checkVisibility({visibilityProperty: true})) return
    const drawn = element.closest('svg'), style = getComputedStyle(element)
    const x = box.x + box.width / 2, y = box.y + box.height / 2
    const hit = document.elementsFromPoint(x, y)
    const whole = drawn ? element.closest('.js-plotly-plot, .nl-panel') : element  // plotly lays a sheet over texts
    if (!hit.some(e => whole.contains(e))) return  // scrolled out of its box
    const colour = (drawn ? style.fill : style.color).match(/[\d.]+/g).map(Number)
    const alpha = (colour[3] ?? 1) * opacity(element) * (drawn ? style.fillOpacity : 1)
    found.push({words: words.slice(0, 50), box: [box.x, box.y, box.width, box.height], colour: colour.slice(0, 3), alpha})
  }
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const words = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement
    if (!words || !ours(element) || off(element) || element.closest('script, style, select')) continue
    const range = document.createRange()
    range.selectNodeContents(walk.currentNode)
    note(words, element, range.getClientRects()[0])
  }
  for (const e of document.querySelectorAll('select, input:not([type=checkbox])'))
    if (ours(e) && !off(e)) note(e.value, e, e.getBoundingClientRect())
  return found
}
