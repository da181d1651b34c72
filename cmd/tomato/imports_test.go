package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// goPackage is what the go command says of a package.
type goPackage struct {
	ImportPath string
	Dir        string
	Name       string
	GoFiles    []string // without tests
	Imports    []string
}

func modulePackages(t *testing.T) (packages []goPackage) {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Name,GoFiles,Imports", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 5 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	return packages
}

// parts says which parts of the module the packages of a part import, beside their
// own: imports point one way, and the three sides know nothing of one another. cmd
// joins them, and may import all.
var parts = map[string][]string{
	"domain":      {},
	"eventlog":    {"domain"},
	"httpapi":     {"domain"},
	"feedclient":  {"domain"},
	"migrations":  {"eventlog"},
	"commandside": {"domain", "eventlog", "httpapi"},
	"projections": {"domain", "eventlog", "migrations"},
	"queryside":   {"domain", "eventlog", "httpapi"},
	"operations":  {"domain", "eventlog", "httpapi", "commandside", "projections", "queryside"}, // operators look into all sides
}

// imports says what each package imports of the module, itself left out: no more, and
// no less. Packages for tests, whose names end in "test", are not listed.
var imports = map[string]string{
	"cmd/tomato":               "cmd/tomato/bench cmd/tomato/server cmd/tomato/settings cmd/tomato/simulate domain domain/order eventlog eventlog/consumer eventlog/consumer/parked eventlog/subjectkeys httpapi migrations operations projections",
	"cmd/tomato/bench":         "cmd/tomato/server cmd/tomato/settings commandside/shard domain domain/nearby domain/order domain/payment domain/restaurant domain/rider eventlog eventlog/consumer eventlog/kafkaprocess eventlog/subjectkeys feedclient httpapi migrations migrations/cluster projections",
	"cmd/tomato/server":        "cmd/tomato/settings commandside commandside/gateway commandside/policies commandside/shard domain eventlog eventlog/consumer eventlog/consumer/parked eventlog/subjectkeys httpapi migrations migrations/cluster operations projections projections/realtime queryside queryside/feed",
	"cmd/tomato/settings":      "eventlog eventlog/subjectkeys httpapi",
	"cmd/tomato/simulate":      "domain domain/order feedclient",
	"commandside":              "commandside/gateway commandside/policies commandside/shard domain domain/order domain/payment domain/restaurant domain/rider domain/rooms eventlog eventlog/subjectkeys httpapi",
	"commandside/gateway":      "commandside/lease eventlog eventlog/pgerr",
	"commandside/lease":        "",
	"commandside/policies":     "commandside/gateway commandside/lease commandside/shard domain domain/nearby domain/order domain/payment domain/rider eventlog eventlog/consumer eventlog/pgerr eventlog/subjectkeys",
	"commandside/shard":        "domain domain/order domain/payment domain/restaurant domain/rider eventlog httpapi",
	"commandside/shard/model":  "",
	"domain":                   "",
	"domain/nearby":            "domain",
	"domain/order":             "domain",
	"domain/payment":           "domain domain/order",
	"domain/restaurant":        "domain domain/order",
	"domain/rider":             "domain",
	"domain/rooms":             "domain",
	"eventlog":                 "domain eventlog/filelock",
	"eventlog/childprocess":    "",
	"eventlog/consumer":        "domain eventlog eventlog/consumer/parked eventlog/pgerr",
	"eventlog/consumer/parked": "eventlog eventlog/pgerr",
	"eventlog/filelock":        "",
	"eventlog/kafkaprocess":    "eventlog/childprocess eventlog/filelock",
	"eventlog/pgerr":           "eventlog",
	"eventlog/subjectkeys":     "domain domain/order domain/rider eventlog",
	"feedclient":               "domain domain/order",
	"httpapi":                  "domain domain/order domain/restaurant",
	"migrations":               "eventlog/pgerr",
	"migrations/cluster":       "eventlog/childprocess eventlog/filelock",
	"operations":               "commandside/shard domain eventlog eventlog/consumer eventlog/consumer/parked eventlog/pgerr eventlog/subjectkeys httpapi projections queryside",
	"projections":              "domain domain/nearby domain/order domain/payment domain/restaurant domain/rider eventlog eventlog/consumer eventlog/consumer/parked eventlog/pgerr migrations projections/realtime",
	"projections/realtime":     "domain domain/order domain/payment domain/rider domain/rooms eventlog eventlog/consumer eventlog/subjectkeys",
	"queryside":                "domain domain/order domain/payment domain/restaurant domain/rider eventlog eventlog/pgerr eventlog/subjectkeys httpapi",
	"queryside/feed":           "domain domain/order domain/rooms eventlog httpapi",
}

const module = "tomato/"

// part is the top folder of a package of the module; ok is false for others.
func part(importPath string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(importPath, module)
	name, _, _ = strings.Cut(rest, "/")
	return name, ok
}

// TestImportsPointOneWay looks at what is shipped; a test may import more.
func TestImportsPointOneWay(t *testing.T) {
	t.Parallel()
	used := map[string]bool{} // "from to", between parts
	listed := maps.Clone(imports)
	for _, p := range modulePackages(t) {
		from, ok := part(p.ImportPath)
		if !ok {
			t.Errorf("package %s is outside %s", p.ImportPath, module)
			continue
		}
		if strings.HasSuffix(p.Name, "test") {
			continue
		}
		allowed, known := parts[from]
		if !known && from != "cmd" {
			t.Errorf("package %s: parts does not say what %s may import", p.ImportPath, from)
		}
		var ours []string
		for _, i := range p.Imports {
			to, is := part(i)
			if !is {
				continue
			}
			ours = append(ours, strings.TrimPrefix(i, module))
			used[from+" "+to] = true
			if to != from && from != "cmd" && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s: %s may import only %v", p.ImportPath, i, from, allowed)
			}
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		slices.Sort(ours)
		was, is := imports[name]
		if now := strings.Join(ours, " "); now != was || !is {
			t.Errorf("%s imports other packages than the table imports says. If each of them is meant, write:\n\t%q: %q,", name, name, now)
		}
		delete(listed, name)
	}
	for name := range listed {
		t.Errorf("there is no package %s: take it off the table imports", name)
	}
	for from, allowed := range parts {
		for _, to := range allowed {
			if !used[from+" "+to] {
				t.Errorf("%s does not import %s: take it off parts", from, to)
			}
		}
	}
}

// domainImports is what the domain may import beside itself: values, text and
// JSON. It has no I/O, no clock and no randomness.
var domainImports = []string{"bytes", "encoding/json", "errors", "fmt", "maps", "math", "regexp", "slices", "strconv", "strings", "sync",
	"time", "unicode/utf8", "unique"}

// clock is what package time has that depends on the present moment.
var clock = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// readClock are the files of the projections that look at the clock, and why. The
// other files hold the folds: a rebuild at any time must make the same rows and
// messages of the same log.
var readClock = map[string]string{
	"projections/rider_positions.go":      "skips locations from the future; they are telemetry and no fold",
	"projections/realtime/assignments.go": "skips locations from the future; they are telemetry and are not read again",
	"projections/fold.go":                 "notes when an event was parked",
	"projections/generations.go":          "reads the generations again from time to time",
	"projections/handover.go":             "waits for other instances",
	"projections/history.go":              "refuses to remove history that is too young",
	"projections/operator.go":             "waits until two generations have passed the same events",
	"projections/progress.go":             "shows how fast a rebuild is",
	"projections/reading.go":              "waits until a read model has passed a token",
	"projections/rebuild.go":              "waits for the process that rebuilds",
	"projections/rebuild_steps.go":        "waits for a database that does not answer",
	"projections/switch.go":               "waits for other instances",
	"projections/riders_upkeep.go":        "takes riders whose location is too old out of the index of searches, which no rebuild compares",
	"projections/search.go":               "leaves out riders whose location is too old",
	"projections/status.go":               "shows how far a read model is behind",
	"projections/realtime/base.go":        "notes when it recorded how far the feed is; no message has it",
	"projections/realtime/history.go":     "waits before it reads the log back again",
	"projections/realtime/realtime.go":    "begins with the locations of the last minutes",
}

// TestFoldsArePure: the domain, and so Decide, Evolve and Apply, and the folds of
// the projections do no I/O and do not look at the clock.
func TestFoldsArePure(t *testing.T) {
	t.Parallel()
	looked := map[string]bool{}
	for _, p := range modulePackages(t) {
		from, _ := part(p.ImportPath)
		if from != "domain" && from != "projections" || strings.HasSuffix(p.Name, "test") {
			continue
		}
		for _, i := range p.Imports {
			_, ours := part(i)
			if from == "domain" && !ours && !slices.Contains(domainImports, i) {
				t.Errorf("%s imports %s: the domain may import only %v", p.ImportPath, i, domainImports)
			}
			if first, _, _ := strings.Cut(i, "/"); first == "net" || first == "os" {
				t.Errorf("%s imports %s: a fold does no I/O", p.ImportPath, i)
			}
			if strings.HasPrefix(i, "math/rand") || i == "crypto/rand" {
				t.Errorf("%s imports %s: a fold does the same each time", p.ImportPath, i)
			}
		}
		for _, name := range p.GoFiles {
			file := strings.TrimPrefix(p.ImportPath, module) + "/" + name
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			timeName := "" // under which the file knows package time
			for _, i := range f.Imports {
				if imported, _ := strconv.Unquote(i.Path.Value); imported == "time" {
					timeName = "time"
					if i.Name != nil {
						timeName = i.Name.Name
					}
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok || !slices.Contains(clock, s.Sel.Name) {
					return true
				}
				if x, ok := s.X.(*ast.Ident); !ok || x.Name != timeName {
					return true
				}
				if readClock[file] == "" {
					t.Errorf("%s: time.%s: times come in with the command or the event", fset.Position(s.Pos()), s.Sel.Name)
				}
				looked[file] = true
				return true
			})
		}
	}
	for file := range readClock {
		if !looked[file] {
			t.Errorf("%s does not look at the clock: take it off the list", file)
		}
	}
}

// TestProductionFilesAreShort: a file of more than 500 lines has more than one job.
func TestProductionFilesAreShort(t *testing.T) {
	t.Parallel()
	for _, p := range modulePackages(t) {
		for _, file := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(b, []byte("\n")); n > 500 {
				t.Errorf("%s/%s has %d lines: cut it along what its parts own", p.ImportPath, file, n)
			}
		}
	}
}

// TestTheLogKnowsNoDatabase: whoever wants an event of the log links neither
// Postgres nor metrics. Consumers, which need both, have a package of their own.
func TestTheLogKnowsNoDatabase(t *testing.T) {
	t.Parallel()
	for _, p := range modulePackages(t) {
		if p.ImportPath != module+"eventlog" {
			continue
		}
		for _, i := range p.Imports {
			if strings.Contains(i, "/pgx") || strings.Contains(i, "/prometheus") || strings.Contains(i, "gobreaker") || strings.HasPrefix(i, module+"eventlog/consumer") {
				t.Errorf("eventlog imports %s", i)
			}
		}
	}
}

// TestTestLibrariesStayOut: what is shipped imports neither testing nor a
// package made for tests, whose names end in "test".
func TestTestLibrariesStayOut(t *testing.T) {
	t.Parallel()
	for _, p := range modulePackages(t) {
		if strings.HasSuffix(p.Name, "test") {
			continue
		}
		for _, i := range p.Imports {
			if i == "testing" || strings.HasPrefix(i, "testing/") || strings.HasSuffix(path.Base(i), "test") {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
}

// TestPackageNames: a package is named after what it does.
func TestPackageNames(t *testing.T) {
	t.Parallel()
	for _, p := range modulePackages(t) {
		for _, name := range append(strings.Split(p.ImportPath, "/"), p.Name) {
			switch strings.TrimSuffix(name, "s") {
			case "util", "common", "helper", "manager":
				t.Errorf("%s is named after nothing that it does", p.ImportPath)
			}
		}
	}
}
