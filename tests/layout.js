// List what is wrong with figures and controls on a page: empty, overlapping, cut off. Called by check_layout in browser.py.
() => {
  const problems = [], slack = 1.5  // [pixels]
  const all = (root, selector) => [...root.querySelectorAll(selector)]
  const rect = e => e.getBoundingClientRect()
  const visible = e => { const r = rect(e); return r.width > 0 && r.height > 0 && e.checkVisibility({visibilityProperty: true}) }
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > slack && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > slack
  const words = e => (e.innerText ?? e.textContent ?? '').trim().replace(/\s+/g, ' ').slice(0, 50)
  const figures = all(document, '.js-plotly-plot').filter(visible)
  const body = e => figures.includes(e) ? e.querySelector('.svg-container') ?? e : e  // a figure can be larger than its element
  const title = figure => `figure '${figure._fullLayout.title?.text?.slice(0, 50) ?? ''}'`

  // 1. each figure has room and something drawn in it
  if (!figures.length) problems.push('no figure at all')
  for (const figure of figures) {
    const drawn = all(figure, '.trace path, .trace text, .point, .points path, .heatmaplayer image, .imagelayer image, .textpoint, .slice, .table').filter(e => e.getBoundingClientRect().width + e.getBoundingClientRect().height > 0)
    if (!figure.data.length && figure._fullLayout.annotations.some(a => a.text)) continue  // it says what it waits for
    if (!figure.data.length) problems.push(`${title(figure)} has no traces`)
    else if (!drawn.length && !all(figure, '.gl-container canvas').length) problems.push(`${title(figure)} draws no point`)
    const areas = all(figure, '.draglayer .nsewdrag'), whole = figure._fullLayout._size
    for (const area of areas.length ? areas.map(rect) : [{width: whole.w, height: whole.h}])
      if (area.width < 60 || area.height < 40) problems.push(`${title(figure)}: a plot area of ${area.width.toFixed()} x ${area.height.toFixed()} pixels`)
  }

  // 2. the words of a figure stay inside it and apart
  for (const figure of figures) {
    const edge = rect(figure.querySelector('.svg-container') ?? figure)
    const turned = e => { const m = e.getScreenCTM(); return Math.abs(m.a*m.b) > .01 }
    const texts = all(figure, '.main-svg text').filter(e => !e.closest('.trace, .modebar, .hoverlayer, .plot .scatterlayer, .makes-tick-invisible') && words(e) && visible(e))
    for (const e of texts) {
      const r = rect(e)
      if (r.left < edge.left - slack || r.right > edge.right + slack || r.top < edge.top - slack || r.bottom > edge.bottom + slack) problems.push(`${title(figure)}: '${words(e)}' is cut off`)
    }
    const straight = texts.filter(e => !turned(e)).map(e => [e, rect(e)])
    straight.forEach(([a, ra], i) => straight.slice(i + 1).forEach(([b, rb]) => {
      const high = Math.min(ra.bottom, rb.bottom) - Math.max(ra.top, rb.top), wide = Math.min(ra.right, rb.right) - Math.max(ra.left, rb.left)
      if (high > 4 && wide > slack) problems.push(`${title(figure)}: '${words(a)}' lies over '${words(b)}'`)  // boxes of text are higher than letters
    }))
  }

  // 3. figures and controls do not cover each other
  const inner = '.widget-box, .jupyter-widget-box, .widget-container, .jupyter-widget-tab, .jupyter-widget-accordion, .widget-output, .jupyter-widget-output'
  const controls = all(document, '.jupyter-widgets').filter(e => visible(e) && !e.matches(inner) && !e.querySelector('.js-plotly-plot') && !e.closest('.js-plotly-plot') && !e.parentElement.closest('.widget-inline-hbox'))
  const boxes = [...figures, ...controls]
  const name = e => figures.includes(e) ? title(e) : `control '${words(e) || e.className}'`
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    if (!a.contains(b) && !b.contains(a) && overlap(rect(body(a)), rect(body(b)))) problems.push(`${name(a)} overlaps ${name(b)}`)
  }))

  // 4. nothing is cut off at the side, and nothing has to be scrolled sideways
  const unseen = e => !e.closest('.jupyter-widgets') && (rect(e).top > innerHeight || rect(e).bottom < 0)  // JupyterLab fits plain figures when they are scrolled to
  for (const e of boxes.filter(e => !unseen(e))) for (let parent = body(e).parentElement; parent; parent = parent.parentElement) {
    const style = getComputedStyle(parent), r = rect(body(e)), p = rect(parent)
    if (style.overflowX === 'visible' && parent !== document.body) continue
    if (r.right > p.left + parent.clientLeft + parent.clientWidth + slack || r.left < p.left - slack) { problems.push(`${name(e)} is wider than its place (${parent.className || parent.tagName})`); break }
  }
  const outputs = new Set(boxes.map(e => e.closest('.jp-OutputArea-output')).filter(Boolean))
  for (const output of outputs) if (output.scrollWidth > output.clientWidth + slack) problems.push(`an output is ${output.scrollWidth} pixels wide in ${output.clientWidth}`)
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) problems.push(`the page is ${document.documentElement.scrollWidth} pixels wide in ${document.documentElement.clientWidth}`)

  // 5. the words of controls are not cut off
  for (const e of controls.flatMap(c => [c, ...all(c, '*')])) {
    if (e.tagName === 'SELECT' && !e.multiple) {
      const pen = document.createElement('canvas').getContext('2d'), style = getComputedStyle(e)
      pen.font = style.font
      const wide = pen.measureText(e.selectedOptions[0]?.text ?? '').width, room = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)
      if (wide > room + slack) problems.push(`the choice '${e.selectedOptions[0].text}' is cut off`)
    } else if (e.matches('.widget-label, .widget-readout, .widget-html-content, button, label') && words(e) && e.clientWidth && e.scrollWidth > e.clientWidth + slack) problems.push(`'${words(e)}' is cut off (${e.scrollWidth} pixels in ${e.clientWidth})`)
  }
  return [...new Set(problems)]
}
