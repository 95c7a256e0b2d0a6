# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium by WebDriver, without a library for it."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
MISSING = 'chromium and chromedriver are not installed'
MEASURE = Path(__file__).with_name('measure.js').read_text()
OPEN_ALL = 'document.querySelectorAll("details").forEach(d => d.open = true)'
_OPTIONS = {
  'browserName': 'chrome',
  'goog:loggingPrefs': {'browser': 'ALL'},
  'goog:chromeOptions': {
    'binary': CHROMIUM,
    'args': [
      '--headless=new',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--hide-scrollbars',
    ],
  },
}


class Browser:
  """A tab of Chromium."""

  def __init__(self, port):
    self._url = f'http://127.0.0.1:{port}/session'
    made = self._call('POST', '', capabilities={'alwaysMatch': _OPTIONS})
    self._url += f'/{made["sessionId"]}'

  def _call(self, method, path, **body):
    request = urllib.request.Request(
      self._url + path,
      method=method,
      data=json.dumps(body).encode() if method == 'POST' else None,
      headers={'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
      return json.load(answer)['value']

  def _tool(self, command, **parameters):
    return self._call(
      'POST', '/goog/cdp/execute', cmd=command, params=parameters
    )

  def open(self, path, *, width, scheme='light', media='screen'):
    """Opens a file in a window of a width, in a colour scheme."""
    self._tool(
      'Emulation.setDeviceMetricsOverride',
      width=width, height=900, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    self._tool('Emulation.setEmulatedMedia', media=media, features=[feature])
    self._call('POST', '/url', url=path.resolve().as_uri())

  def run(self, script, *arguments):
    """Returns what the body of a function of JavaScript returns."""
    return self._call(
      'POST', '/execute/sync', script=script, args=list(arguments)
    )

  def press_tab(self):
    """Presses the tab key."""
    for kind in ('keyDown', 'keyUp'):
      self._tool(
        'Input.dispatchKeyEvent', type=kind, key='Tab', code='Tab',
        windowsVirtualKeyCode=9,
      )  # fmt: skip

  def screenshot(self, path, *, top=0, height=None):
    """Writes a picture of the page from ``top`` on; all of it by default."""
    width, whole = self.run(
      'const e = document.documentElement; return [innerWidth, e.scrollHeight]'
    )
    clip = {
      'x': 0, 'y': top, 'width': width, 'scale': 1,
      'height': height or whole - top,
    }  # fmt: skip
    taken = self._tool(
      'Page.captureScreenshot', captureBeyondViewport=True, clip=clip
    )
    path.write_bytes(base64.b64decode(taken['data']))

  def log(self):
    """Returns the messages of the console since the last call."""
    return self._call('POST', '/se/log', type='browser')

  def close(self):
    self._call('DELETE', '')


@contextlib.contextmanager
def opened():
  """Yields a browser, which ends with the block."""
  driver = subprocess.Popen(
    [DRIVER, '--port=0'], stdout=subprocess.PIPE, text=True
  )
  try:
    for line in driver.stdout:
      if found := re.search(r'started successfully on port (\d+)', line):
        break
    browser = Browser(found[1])
    try:
      yield browser
    finally:
      browser.close()
  finally:
    driver.terminate()
    driver.wait()
    driver.stdout.close()
