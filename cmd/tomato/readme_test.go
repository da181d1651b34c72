package main

import (
	"bytes"
	"context"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/eventlog"
	"tomato/migrations/postgrestest"
)

// The documents say what is so: files, tests, commands and settings that they
// name are there.

const root = "../.."

// documents are all of them, by path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]string{}
	for _, p := range append(paths, filepath.Join(root, "README.md"), filepath.Join(root, "CHANGELOG.md"), filepath.Join(root, "CONTRIBUTING.md")) {
		name, err := filepath.Rel(root, p)
		if err != nil {
			t.Fatal(err)
		}
		docs[name] = read(t, name)
	}
	return docs
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFilesNamedInDocumentsExist(t *testing.T) {
	t.Parallel()
	named := regexp.MustCompile("`((?:[A-Za-z_.][\\w.-]*/)*[A-Za-z_.][\\w.-]*\\.(?:go|md|yaml|json|xml|conf))`")
	var found int
	for doc, text := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			path := m[1]
			if strings.HasPrefix(path, ".tomato/") {
				continue // made at run time
			}
			found++
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s names %s: %v", doc, path, err)
			}
		}
	}
	if found < 30 {
		t.Errorf("found only %d files: is the pattern right?", found)
	}
}

func TestTestsNamedInDocumentsExist(t *testing.T) {
	t.Parallel()
	named := regexp.MustCompile("`([a-z][a-z/]*)\\.((?:Test|Fuzz)\\w+)`")
	var found int
	for doc, text := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			found++
			files, err := filepath.Glob(filepath.Join(root, m[1], "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(files, func(f string) bool {
				b, err := os.ReadFile(f)
				return err == nil && bytes.Contains(b, []byte("\nfunc "+m[2]+"("+strings.ToLower(m[2][:1])+" *testing."+m[2][:1]+")"))
			}) {
				t.Errorf("%s names %s of %s, which is not there", doc, m[2], m[1])
			}
		}
	}
	if found < 50 {
		t.Errorf("found only %d tests: is the pattern right?", found)
	}
}

func newParser(t *testing.T) *kong.Kong {
	t.Helper()
	p, err := kong.New(&cli{}, kong.Name("tomato"), kong.BindTo(context.Background(), (*context.Context)(nil)), helpVars)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCommandsQuotedInDocumentsParse(t *testing.T) {
	t.Parallel()
	quoted := regexp.MustCompile("(?:bin/tomato|tomato tomato) ([a-z][^`)\\n]*)")
	words := regexp.MustCompile(`'[^']*'|\S+`)
	docs := documents(t)
	docs["compose.yaml"] = read(t, "compose.yaml")
	var found int
	for doc, text := range docs {
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			var args []string
			for _, w := range words.FindAllString(m[1], -1) {
				args = append(args, strings.Trim(w, "'"))
			}
			if slices.Contains(args, "--help") || args[0] == "bench" {
				continue // --help ends the process
			}
			found++
			if _, err := newParser(t).Parse(args); err != nil {
				t.Errorf("%s: tomato %s: %v", doc, m[1], err)
			}
		}
	}
	if found < 15 {
		t.Errorf("found only %d commands: is the pattern right?", found)
	}
	makefile := read(t, "Makefile")
	for _, m := range regexp.MustCompile("(?m)(?:`|^    )make ([a-z]+)").FindAllStringSubmatch(docs["README.md"], -1) {
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			t.Errorf("README.md: the Makefile has no %s", m[1])
		}
	}
}

// environment has all environment variables that the program reads.
func environment(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	var walk func(*kong.Node)
	walk = func(n *kong.Node) {
		for _, f := range n.Flags {
			for _, e := range f.Envs {
				all[e] = true
			}
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	walk(newParser(t).Model.Node)
	return all
}

func TestSettingsAreDocumented(t *testing.T) {
	t.Parallel()
	known := environment(t)
	operations := read(t, "docs/operations.md")
	for name := range known {
		if !strings.Contains(operations, "`"+name+"`") {
			t.Errorf("docs/operations.md does not have %s", name)
		}
	}
	name := regexp.MustCompile(`\b(?:TOMATO_[A-Z_]+|KAFKA_(?:BROKERS|TLS|SASL_[A-Z]+)|DATABASE_URL)\b`)
	docs := documents(t)
	for _, ofTests := range []string{"TOMATO_FAULT_SEED", "TOMATO_FAULT_SOAK"} {
		known[ofTests] = true
	}
	docs["compose.yaml"] = strings.ReplaceAll(read(t, "compose.yaml"), "TOMATO_PORT", "") // compose's own
	for doc, text := range docs {
		for _, n := range name.FindAllString(text, -1) {
			if of, is := strings.CutSuffix(n, "_FILE"); !known[n] && !(is && secretVariables(t)[of]) {
				t.Errorf("%s names %s, which nobody reads", doc, n)
			}
		}
	}
}

// TestComposeRunsRolesThatGoTogether: what each service runs is what serve takes.
func TestComposeRunsRolesThatGoTogether(t *testing.T) {
	t.Parallel()
	commands := regexp.MustCompile(`(?m)^\s+command: \[(serve[^\]]*)\]`).FindAllStringSubmatch(read(t, "compose.yaml"), -1)
	roles := map[string]bool{}
	for _, m := range commands {
		args := strings.Split(m[1], ", ")
		for i := range args {
			args[i] = strings.Trim(args[i], `"`)
		}
		var c cli
		p, err := kong.New(&c, helpVars)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Parse(args); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		if err := c.Serve.Check(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		for _, r := range c.Serve.Role {
			roles[r] = true
		}
	}
	for _, r := range []string{server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject, server.RoleReact} {
		if !roles[r] {
			t.Errorf("no service runs %s", r)
		}
	}
}

// TestDependenciesAreExplained: each module that is imported has its reason.
func TestDependenciesAreExplained(t *testing.T) {
	t.Parallel()
	var modules []string
	for _, m := range regexp.MustCompile(`(?m)^\s+(\S+) v\S+`).FindAllStringSubmatch(read(t, "go.mod"), -1) {
		modules = append(modules, m[1])
	}
	used := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			longest := ""
			for _, m := range modules {
				if (imported == m || strings.HasPrefix(imported, m+"/")) && len(m) > len(longest) {
					longest = m
				}
			}
			if longest != "" {
				used[longest] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	text := read(t, "docs/dependencies.md")
	for m := range used {
		if !strings.Contains(text, "| `"+m+"` |") {
			t.Errorf("docs/dependencies.md has no row for %s", m)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		if !used[m[1]] {
			t.Errorf("docs/dependencies.md has a row for %s, which nothing imports", m[1])
		}
	}
}

// What follows, up to the end of counts, is the README's reader rule, word for
// word.

type reader struct{ term, seq int64 }

// counts reports whether the partition's next record is valid.
func (r *reader) counts(rec *kgo.Record) bool {
	h := map[string]string{}
	for _, x := range rec.Headers {
		h[x.Key] = string(x.Value)
	}
	term, _ := strconv.ParseInt(h["term"], 10, 64)
	seq, _ := strconv.ParseInt(h["seq"], 10, 64)
	if h["ce_type"] == "SHARD_CLAIMED" { // a writer begins
		if term != r.term+1 {
			return false
		}
		r.term, r.seq = term, 0
		return true
	}
	if term == 0 || term != r.term || seq != r.seq+1 {
		return false
	}
	r.seq = seq
	return true
}

// TestTheReadmesReaderRuleIsOurs: what outsiders are told to do is what every
// reader here does.
func TestTheReadmesReaderRuleIsOurs(t *testing.T) {
	t.Parallel()
	own := read(t, "cmd/tomato/readme_test.go")
	from := strings.Index(own, "type reader struct")
	to := strings.Index(own[from:], "\n}\n") + from + len("\n}\n")
	if !strings.Contains(read(t, "README.md"), "```go\n"+own[from:to]+"```\n") {
		t.Error("the README's rule is not the one that is tested here")
	}
	rapid.Check(t, func(t *rapid.T) {
		var ours eventlog.Rule
		var theirs reader
		small := rapid.Int64Range(0, 3)
		for i := range rapid.IntRange(1, 60).Draw(t, "records") {
			e := eventlog.Event{ID: "id", Source: "/test", Type: "ORDER_PAID", Subject: "o1", Version: 1, Data: []byte("{}"),
				Term: ours.Term + small.Draw(t, "term") - 1, Seq: ours.Seq + small.Draw(t, "seq")}
			if rapid.IntRange(0, 3).Draw(t, "claim") == 0 {
				e.Type, e.Subject, e.Version, e.Seq = eventlog.ShardClaimed, "", 0, 0
			}
			r := e.NewRecord(eventlog.Orders, 0)
			if rapid.IntRange(0, 2).Draw(t, "odd") == 0 { // headers that no writer of ours makes, or makes twice
				for range rapid.IntRange(1, 3).Draw(t, "headers") {
					r.Headers = append(r.Headers, kgo.RecordHeader{Key: rapid.SampledFrom(ruleHeaders).Draw(t, "header"), Value: []byte(rapid.SampledFrom(oddValues).Draw(t, "value"))})
				}
			}
			back, _ := eventlog.ParseRecord(r) // back.Fault has the error; the rule is the same
			if got, want := theirs.counts(r), ours.Accepts(&back); got != want || theirs != (reader{ours.Term, ours.Seq}) {
				t.Fatalf("record %d (%s, term %d, seq %d): %v, and is at %v; the rule says %v, and is at %v", i, e.Type, e.Term, e.Seq, got, theirs, want, ours)
			}
		}
	})
}

var (
	ruleHeaders = []string{"ce_type", "term", "seq", "version", "ce_time", "ce_subject"}
	oddValues   = []string{"", "x", "0", "1", "2", "+1", "01", "-1", "1.0", " 1", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "SHARD_CLAIMED", "ORDER_PAID", "\xff"}
)

// FuzzTheReadmesReaderRule: on whatever headers, the README's readers and Tomato's
// agree.
func FuzzTheReadmesReaderRule(f *testing.F) {
	for _, v := range oddValues {
		f.Add("term", v, "seq", "1", "ORDER_PAID", int64(1), int64(0))
		f.Add("seq", v, "term", "1", "ORDER_PAID", int64(1), int64(0))
		f.Add("ce_type", v, "term", "2", "SHARD_CLAIMED", int64(1), int64(5))
	}
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2, eventType string, term, seq int64) {
		r := &kgo.Record{Headers: []kgo.RecordHeader{{Key: "ce_type", Value: []byte(eventType)}, {Key: key1, Value: []byte(value1)}, {Key: key2, Value: []byte(value2)}}}
		e, _ := eventlog.ParseRecord(r)
		ours, theirs := eventlog.Rule{Term: term, Seq: seq}, reader{term, seq}
		if got, want := theirs.counts(r), ours.Accepts(&e); got != want || theirs != (reader{ours.Term, ours.Seq}) {
			t.Fatalf("%v, and is at %v; the rule says %v, and is at %v", got, theirs, want, ours)
		}
	})
}

// TestTheReadmesFirstOrderIsDelivered pastes the README's first order into a
// shell beside a running serve, as a newcomer would, and looks at what became
// of it; then serve ends as it must.
func TestTheReadmesFirstOrderIsDelivered(t *testing.T) {
	t.Parallel()
	database := postgrestest.URL(t)
	readme := read(t, "README.md")
	_, script, _ := strings.Cut(readme, "```sh\n")
	script, _, ok := strings.Cut(script, "```")
	if !ok || strings.Count(script, "\n") >= 20 {
		t.Fatalf("the first order is not there, or too long:\n%s", script)
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "bin", "tomato"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	env := append(os.Environ(), "DATABASE_URL="+database, "TOMATO_HTTP_ADDR=127.0.0.1:0", "TOMATO_DATA_DIR=.tomato", "TOMATO_LOG_LEVEL=warn")
	serve := exec.Command(filepath.Join(dir, "bin", "tomato"), "serve", "--dev")
	serve.Dir, serve.Env = dir, env
	var log bytes.Buffer
	serve.Stdout, serve.Stderr = &log, &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serve.Wait() }()
	running := true
	t.Cleanup(func() {
		if running {
			_ = serve.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("serve said:\n%s", &log)
		}
	})

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	url := whenReady(t, ctx, filepath.Join(dir, ".tomato"), ended)
	// A newcomer who stumbles over the first line stops there.
	script = "set -e -o pipefail\n" + strings.ReplaceAll(script, "http://127.0.0.1:8080", url)
	shell := exec.CommandContext(ctx, "bash", "-c", script)
	shell.Dir, shell.Env = dir, env
	shell.WaitDelay = 5 * time.Second
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("the first order: %v\n%s", err, out)
	}
	// The last answer is the delivered order; the feed told of it, too.
	for _, want := range []string{`"status":"delivered","paymentStatus":"paid"`, `"event":"order:rider_assigned"`} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the first order's output has no %s:\n%s", want, out)
		}
	}
	undocumentedMetrics(t, ctx, url)

	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err = <-ended:
		running = false
		if err != nil {
			t.Errorf("after SIGTERM serve ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("20 s after SIGTERM serve still runs")
	}
}

// whenReady returns the URL of the serve with the data directory once it is ready.
func whenReady(t *testing.T, ctx context.Context, dataDir string, ended chan error) string {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if r, err := settings.ReadRunning(dataDir); err == nil && get(ctx, r.URL+"/readyz") == http.StatusOK {
			return r.URL
		}
		select {
		case <-tick.C:
		case err := <-ended:
			ended <- err
			t.Fatalf("serve ended: %v", err)
		case <-ctx.Done():
			t.Fatal("serve is not ready")
		}
	}
}

func get(ctx context.Context, url string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// undocumentedMetrics holds docs/operations.md to what /metrics shows.
func undocumentedMetrics(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	operations := read(t, "docs/operations.md")
	families := regexp.MustCompile(`(?m)^# HELP (tomato_\w+)`).FindAllStringSubmatch(b.String(), -1)
	if len(families) < 10 {
		t.Errorf("/metrics has only %d families of our own", len(families))
	}
	for _, m := range families {
		if !strings.Contains(operations, fmt.Sprintf("`%s`", m[1])) {
			t.Errorf("docs/operations.md does not have %s", m[1])
		}
	}
}

// Alerts that name a metric which does not exist never fire, and who is told to
// look at one looks in vain.
func TestAlertsNameMetricsThatAreThere(t *testing.T) {
	t.Parallel()
	var source strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		source.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	alerts := read(t, "docs/alerts.yaml")
	names := regexp.MustCompile(`tomato_\w+`).FindAllString(alerts, -1)
	if len(names) < 5 {
		t.Fatalf("only %v", names)
	}
	for _, name := range names {
		if !strings.Contains(source.String(), `"`+name+`"`) {
			t.Errorf("docs/alerts.yaml: nothing has the metric %s", name)
		}
	}
	for doc, text := range documents(t) {
		for _, m := range regexp.MustCompile("`(tomato_\\w+)`").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(source.String(), `"`+m[1]+`"`) {
				t.Errorf("%s: nothing has the metric %s", doc, m[1])
			}
		}
	}
}
