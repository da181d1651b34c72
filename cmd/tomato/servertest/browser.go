package servertest

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// Browser is one tab of a headless Chromium of its own.
type Browser struct {
	t   testing.TB
	ctx context.Context
}

// OpenBrowser starts Chromium, which ends with the test. It reaches 127.0.0.1 and nothing
// else. If Chromium is not installed, t is skipped, or fails if TOMATO_REQUIRE_CHROMIUM
// is 1.
func OpenBrowser(t testing.TB) *Browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("TOMATO_REQUIRE_CHROMIUM") == "1" {
			t.Fatal("Chromium is not installed (.ci/setup test installs it):", err)
		}
		t.Skip("Chromium is not installed:", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), // headless, with a new profile
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(Patience),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	allocated, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	ctx, closeTab := chromedp.NewContext(allocated, chromedp.WithErrorf(t.Logf), chromedp.WithLogf(func(string, ...any) {}))
	t.Cleanup(closeTab)
	b := &Browser{t, ctx}
	browse(b, chromedp.EmulateViewport(800, 900))
	return b
}

// browse runs an action in the tab.
func browse[T any](b *Browser, action chromedp.Action[T]) (value T) {
	b.t.Helper()
	ended := make(chan error, 1)
	// The context of the first run is that of the browser, so it must not end here.
	go func() {
		var err error
		value, err = chromedp.Run(b.ctx, action)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil {
			b.t.Fatal("the browser:", err)
		}
	case <-time.After(Patience):
		b.t.Fatal("the browser does not answer")
	}
	return value
}

// Open opens a page.
func (b *Browser) Open(url string) {
	b.t.Helper()
	browse(b, chromedp.Navigate(url))
}

// Eval evaluates a JavaScript expression in the page, and returns its value, which must be
// a text.
func (b *Browser) Eval(expression string) string {
	b.t.Helper()
	return browse(b, chromedp.Evaluate[string](expression))
}

// Until waits until the expression has the value.
func (b *Browser) Until(expression, value string) {
	b.t.Helper()
	Until(b.t, expression+" is "+value, func() bool { return b.Eval(expression) == value })
}

// Screenshot writes a picture of the page to a file, for people who look at a failure.
func (b *Browser) Screenshot(file string) {
	b.t.Helper()
	if err := os.WriteFile(file, browse(b, chromedp.CaptureScreenshot()), 0o600); err != nil {
		b.t.Fatal(err)
	}
}
