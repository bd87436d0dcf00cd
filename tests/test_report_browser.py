"""The report's page in a real browser: Debian's Chromium, without a network."""

import base64
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_example import example_report

from evaluation.report import write_report

pytestmark = pytest.mark.slow
CHROMIUM, DRIVER = Path('/usr/bin/chromium'), Path('/usr/bin/chromedriver')
FLAGS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
)  # fmt: skip
PHONE, DESKTOP = (390, 844), (1400, 900)
LOADED = """
    const done = arguments[0];
    if (document.readyState === 'complete') done();
    else addEventListener('load', () => done());
"""
TALLEST = 8000  # pixels of one picture


class Browser:
    """A headless Chromium, and what the tests ask of it."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f'--user-data-dir={profile}'):
            options.add_argument(flag)
        logs = {'browser': 'ALL', 'performance': 'ALL'}
        options.set_capability('goog:loggingPrefs', logs)
        service = webdriver.ChromeService(executable_path=str(DRIVER))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, page: Path, size: tuple[int, int] = DESKTOP, scheme: str = 'light') -> None:
        """Load the page as a screen of this size and scheme shows it."""
        width, height = size
        metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False}
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
        feature = {'name': 'prefers-color-scheme', 'value': scheme}
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [feature]})
        self.driver.get('about:blank')  # or the same address may not load again
        self.driver.get(page.resolve().as_uri())
        self.driver.execute_async_script(LOADED)

    def run(self, script: str, *arguments: object) -> object:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def events(self, method: str) -> list[dict]:
        """Parameters of the DevTools events of this name since the last call."""
        messages = [json.loads(entry['message']) for entry in self.driver.get_log('performance')]
        return [m['message']['params'] for m in messages if m['message']['method'] == method]

    def picture(self, path: Path, top: int = 0, height: int = TALLEST) -> None:
        """A picture of the page from `top` on, also of what is below the window."""
        width, full = self.run('return [innerWidth, document.documentElement.scrollHeight]')
        clip = {'x': 0, 'y': top, 'width': width, 'height': min(height, full - top), 'scale': 1}
        options = {'captureBeyondViewport': True, 'clip': clip}
        data = self.driver.execute_cdp_cmd('Page.captureScreenshot', options)['data']
        path.write_bytes(base64.b64decode(data))


def take_pictures(browser: Browser, page: Path, folder: Path, *, part: int = 1200) -> None:
    """The whole page in parts, every section open, wide and narrow, light and dark, as PNG."""
    for scheme in ('light', 'dark'):
        for size in (DESKTOP, PHONE):
            browser.open(page, size, scheme)
            browser.run('document.querySelectorAll("details").forEach((d) => { d.open = true; })')
            full = browser.run('return document.documentElement.scrollHeight')
            for i, top in enumerate(range(0, full, part)):
                browser.picture(folder / f'{scheme}_{size[0]}_{i:02d}.png', top, part)


def started(profile: Path) -> Iterator[Browser]:
    """A Chromium until the tests that use it are done."""
    for path in (CHROMIUM, DRIVER):
        if not path.exists():
            pytest.skip(f"needs Debian's chromium and chromium-driver: {path} is not there")
    if importlib.util.find_spec('selenium') is None:
        pytest.skip('needs selenium (requirements-dev.txt)')
    browser = Browser(profile)
    yield browser
    browser.driver.quit()


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium with an empty profile of its own."""
    yield from started(tmp_path_factory.mktemp('profile'))


@pytest.fixture(scope='module')
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with hostile text in it."""
    folder = tmp_path_factory.mktemp('report')
    return write_report(folder, example_report(folder))


OPEN_ALL = 'document.querySelectorAll("details").forEach((part) => { part.open = true; })'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_loads_alone_and_without_an_error(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page)
    browser.events('')  # what other tests did, and the browser's own first page
    browser.open(page, scheme=scheme)
    browser.run(OPEN_ALL)
    requests = [event['request']['url'] for event in browser.events('Network.requestWillBeSent')]
    assert page.resolve().as_uri() in requests
    assert [url for url in requests if not url.startswith(('file:', 'data:'))] == []
    assert [url for url in requests if url.startswith('file:')] == [page.resolve().as_uri()]
    assert browser.driver.get_log('browser') == []
    sizes = browser.run('return [...document.images].map((i) => [i.naturalWidth, i.complete])')
    assert sizes == [[384, True]] * 8


def test_hostile_text_does_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run('return window.hacked') is None
    assert browser.run('return document.title').startswith('Report <script>')
    # Even an element that did get in could not run.
    browser.run('document.body.innerHTML += "<img src=x onerror=window.hacked=1>"')
    browser.run("""
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 2';
        document.body.append(script);
    """)
    assert browser.run('return window.hacked') is None
    log = browser.driver.get_log('browser')
    assert all('Content Security Policy' in entry['message'] for entry in log), log
    assert log


def column(browser: Browser, table: str, place: int) -> list[str]:
    """The exact values of one column, from top to bottom."""
    script = """
        const rows = [...document.getElementById(arguments[0]).closest('table').tBodies[0].rows];
        return rows.map((row) => {
          const cell = row.cells[arguments[1]];
          return (cell.querySelector('data') ?? { value: cell.textContent }).value;
        });
    """
    return browser.run(script, table, place)


def test_sorting_is_numeric_with_na_last_and_can_be_undone(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    table, place = 'sets-1-scores', 1
    assert column(browser, table, 0)[:2] == ['No Finding', 'Enlarged Cardiomediastinum']
    before = column(browser, table, place)
    cells = f'//caption[@id="{table}"]/../thead//th'
    heads = browser.driver.find_elements(By.XPATH, cells)
    button = heads[place].find_element(By.TAG_NAME, 'button')
    assert [head.get_attribute('aria-sort') for head in heads] == ['none'] * 11
    button.click()
    assert column(browser, table, place) == sorted(before, key=float) != sorted(before)
    assert heads[place].get_attribute('aria-sort') == 'ascending'
    button.send_keys(Keys.ENTER)  # by keyboard
    assert column(browser, table, place) == sorted(before, key=float, reverse=True)
    assert heads[place].get_attribute('aria-sort') == 'descending'
    delong = heads[3].find_element(By.TAG_NAME, 'button')
    for reverse in (False, True):
        delong.click()
        values = column(browser, table, 3)
        assert values.count('') == 4
        assert values[-4:] == [''] * 4
        assert values[:-4] == sorted(values[:-4], key=float, reverse=reverse)
    assert heads[place].get_attribute('aria-sort') == 'none'
    delong.click()
    assert column(browser, table, place) == before
    heads[0].find_element(By.TAG_NAME, 'button').click()
    names = column(browser, table, 0)
    assert names.index('Atelectasis') < names.index('Edema') < names.index('Pneumothorax')


@pytest.mark.parametrize('size', [PHONE, DESKTOP, (320, 640)])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, size: tuple) -> None:
    browser.open(page, size)
    browser.run(OPEN_ALL)
    wide, inner = browser.run('return [document.scrollingElement.scrollWidth, innerWidth]')
    assert inner == size[0]
    assert wide <= inner
    scrolls = browser.run("""
        return [...document.querySelectorAll('.scroll')].filter(
          (box) => box.scrollWidth > box.clientWidth).length;
    """)
    assert (scrolls > 5) == (size != DESKTOP)


def test_letters_in_charts_stay_legible_on_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, PHONE)
    browser.run(OPEN_ALL)
    sizes = browser.run("""
        const all = [...document.querySelectorAll('svg text')];
        const shown = all.filter((t) => t.getClientRects().length);
        const scale = (t) => Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b);
        return shown.map((t) => parseFloat(getComputedStyle(t).fontSize) * scale(t));
    """)
    assert len(sizes) > 1000
    assert min(sizes) >= 11


CONTRAST = """
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (v) => (v <= 10.31475 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const colour = parse(getComputedStyle(at).backgroundColor);
        if (colour.length < 4 || colour[3] === 1) return colour;
      }
      return [255, 255, 255];
    };
    const low = [];
    for (const element of document.querySelectorAll('body *')) {
      const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
      if (!own || element.closest('script, style') || !element.getClientRects().length) continue;
      const style = getComputedStyle(element);
      const colour = element.closest('svg') ? style.fill : style.color;
      const [a, b] = [light(parse(colour)), light(behind(element))].sort((x, y) => y - x);
      const contrast = (a + 0.05) / (b + 0.05);
      if (contrast < 4.5) low.push([element.tagName, element.textContent, contrast]);
    }
    return low;
"""


def test_dark_differs_from_light_and_both_have_contrast(browser: Browser, page: Path) -> None:
    backgrounds = []
    for scheme in ('light', 'dark'):
        browser.open(page, scheme=scheme)
        browser.run(OPEN_ALL)
        assert browser.run(CONTRAST) == []
        backgrounds.append(browser.run('return getComputedStyle(document.body).backgroundColor'))
    assert backgrounds == ['rgb(255, 255, 255)', 'rgb(19, 22, 27)']
    browser.run('document.body.style.color = "rgb(90, 90, 90)"')  # the measure can fail
    assert browser.run(CONTRAST) != []


def test_sections_fold_and_links_open_them(browser: Browser, page: Path) -> None:
    count = 'return document.querySelectorAll("details[open]").length'
    browser.open(page)
    whole = browser.run('return document.querySelectorAll("details").length')
    assert 0 < browser.run(count) < whole
    buttons = 'document.querySelectorAll(".tools button")'
    browser.run(f'{buttons}[0].click()')
    assert browser.run(count) == whole
    browser.run(f'{buttons}[1].click()')
    assert browser.run(count) == 0
    browser.run('location.hash = "sets-1-scores"; dispatchEvent(new Event("hashchange"))')
    assert browser.run(count) == 1
    browser.open(page, PHONE)
    browser.driver.refresh()
    assert browser.run(count) == 1


def test_print_is_light_complete_and_without_controls(browser: Browser, page: Path) -> None:
    browser.open(page, scheme='dark')
    media = {'media': 'print', 'features': [{'name': 'prefers-color-scheme', 'value': 'dark'}]}
    browser.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
    browser.run('dispatchEvent(new Event("beforeprint"))')
    assert browser.run('return document.querySelectorAll("details:not([open])").length') == 0
    colour = 'return getComputedStyle(document.body).backgroundColor'
    assert browser.run(colour) == 'rgb(255, 255, 255)'
    shown = (
        'return [...document.querySelectorAll("nav, .tools")].filter((e) => e.offsetHeight).length'
    )
    assert browser.run(shown) == 0
    cut = """
        return [...document.querySelectorAll('figure')].filter(
          (figure) => getComputedStyle(figure).breakInside !== 'avoid').length;
    """
    assert browser.run(cut) == 0
    browser.run('dispatchEvent(new Event("afterprint"))')
    assert browser.run('return document.querySelectorAll("details:not([open])").length') > 0


def test_the_first_stop_of_the_keyboard_skips_to_the_results(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    browser.driver.find_element(By.TAG_NAME, 'body').send_keys(Keys.TAB)
    assert browser.run('return document.activeElement.textContent') == 'Skip to the results'
    assert browser.run('return document.activeElement.getBoundingClientRect().left') >= 0


def test_pictures_show_the_whole_page(browser: Browser, page: Path, tmp_path: Path) -> None:
    from PIL import Image

    browser.open(page, PHONE)
    browser.picture(tmp_path / 'top.png', 0, 500)
    with Image.open(tmp_path / 'top.png') as picture:
        assert picture.size == (390, 500)
        assert len(set(picture.convert('L').get_flattened_data())) > 50
