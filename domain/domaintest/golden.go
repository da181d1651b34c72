// Package domaintest has the code that the tests of all aggregates share. Aggregate is
// the harness for tests of the form: given events, when a command comes, then one event
// or a refusal. Golden tests the wire form of events with golden files.
package domaintest

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tomato/domain"
)

// The versions of the folds are constants that TestFoldVersions writes.
//go:generate go test . -run ^TestFoldVersions$ -count=1 -update

// update creates golden files that are missing. It never overwrites a golden file,
// because events that are on a topic cannot be changed either. In this package it
// writes the generated versions of the folds.
var update = flag.Bool("update", false, "create missing golden files; existing ones are never touched. In package domaintest: write the versions of the folds")

// Golden tests the events of the package under test. It checks that these have the same
// event types: the constants Type…, the list types, the EventType methods, Decode, and
// the golden files testdata/<TYPE>.v1.json. It fails if a version of a type has no golden
// file, or a golden file no version. There must be one sample of each type, which must
// encode to the golden file of the last version and decode from it; if it is written
// without reflection, it must also be read so. The golden file of an
// older version must decode, and be the same when the event is written in that version.
func Golden[E domain.Event](t *testing.T, decode func(eventType string, version int, data []byte) (E, error), forms domain.Forms[E], types []string, samples ...E) {
	t.Helper()
	want := slices.Sorted(slices.Values(types))
	same := func(what string, got []string) {
		t.Helper()
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %v\nTypes lists: %v", what, got, want)
		}
	}
	same("constants Type…", typeConstants(t))
	var sampled, files []string
	for _, e := range samples {
		sampled = append(sampled, e.EventType())
		if name := reflect.TypeOf(e).Name(); name != camelCase(e.EventType()) {
			t.Errorf("the Go type of %s is %s, want %s", e.EventType(), name, camelCase(e.EventType()))
		}
		t.Run(e.EventType(), func(t *testing.T) { golden(t, decode, forms, e) })
	}
	same("samples", sampled)
	paths, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		files = append(files, filepath.Base(p))
	}
	var versions []string
	for _, typ := range types {
		for v := range max(1, len(forms[typ])) {
			versions = append(versions, fileOf(typ, v+1))
		}
	}
	if slices.Sort(versions); !slices.Equal(files, versions) {
		t.Errorf("golden files: %v\nTypes and Forms list: %v", files, versions)
	}
	for _, typ := range types { // Decode must know each type, even without a sample
		if _, err := decode(typ, max(1, len(forms[typ])), []byte("{}")); err != nil {
			t.Errorf("Decode does not know %s: %v", typ, err)
		}
	}
	if e, err := decode("NO_SUCH_EVENT", 1, []byte("{}")); err == nil {
		t.Errorf("an unknown type decodes as %#v", e)
	}
}

// camelCase turns ORDER_PLACED into OrderPlaced.
func camelCase(eventType string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(eventType, "_") {
		b.WriteString(word[:1] + strings.ToLower(word[1:]))
	}
	return b.String()
}

// fileOf returns the name of a golden file.
func fileOf(eventType string, version int) string {
	return eventType + ".v" + strconv.Itoa(version) + ".json"
}

func golden[E domain.Event](t *testing.T, decode func(string, int, []byte) (E, error), forms domain.Forms[E], e E) {
	last := max(1, len(forms[e.EventType()]))
	for v := 1; v < last; v++ {
		older(t, decode, forms, e.EventType(), v)
	}
	path := filepath.Join("testdata", fileOf(e.EventType(), last))
	got, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if os.IsNotExist(err) && *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		want = append(slices.Clone(got), '\n')
		err = os.WriteFile(path, want, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	want = bytes.TrimSuffix(want, []byte("\n"))
	if w, ok := any(e).(domain.JSONWriter); ok {
		if by := domain.EncodeJSON(w); !bytes.Equal(by, want) {
			t.Errorf("written by hand:\n%s\ngolden:\n%s", by, want)
		}
		back := reflect.New(reflect.TypeOf(e))
		if r, ok := back.Interface().(domain.JSONReadable); !ok {
			t.Errorf("%T has WriteJSON and no ReadJSON, so that it is written without reflection and read with it", e)
		} else if !domain.ReadJSON(want, r) || !reflect.DeepEqual(back.Elem().Interface(), any(e)) {
			t.Errorf("read by hand: %#v\nwant: %#v", back.Elem(), e)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded:\n%s\ngolden:\n%s", got, want)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, want); err != nil || !bytes.Equal(compact.Bytes(), want) {
		t.Errorf("not compact JSON on one line (%v): %s", err, want)
	}
	if bytes.Contains(want, []byte("null")) {
		t.Errorf("what does not apply is absent, never null: %s", want)
	}
	back, err := decode(e.EventType(), last, want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, e) {
		t.Errorf("decoded:\n%#v\nwant:\n%#v", back, e)
	}
	if _, err := decode(e.EventType(), last, []byte("[")); err == nil {
		t.Error("broken JSON decodes")
	}
}

// older tests an older version of an event: it decodes, and if this build still writes
// the version, the event is the same in it.
func older[E domain.Event](t *testing.T, decode func(string, int, []byte) (E, error), forms domain.Forms[E], eventType string, version int) {
	want, err := os.ReadFile(filepath.Join("testdata", fileOf(eventType, version)))
	if err != nil {
		t.Fatal(err)
	}
	want = bytes.TrimSuffix(want, []byte("\n"))
	e, err := decode(eventType, version, want)
	if err != nil {
		t.Fatalf("version %d: %v", version, err)
	}
	if _, err := decode(eventType, version, []byte("[")); err == nil {
		t.Errorf("version %d: broken JSON decodes", version)
	}
	if forms[eventType][version-1].Write == nil {
		return
	}
	got, err := json.Marshal(forms.As(e, version))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("version %d is written as\n%s (%v), golden:\n%s", version, got, err, want)
	}
}

// typeConstants reads the constants Type… from the source of the package under
// test, and checks that each is named after its value.
func typeConstants(t *testing.T) (types []string) {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if built, err := build.Default.MatchFile(".", p); err != nil || !built { // such as what has the tag nextepoch
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			consts, ok := d.(*ast.GenDecl)
			if !ok || consts.Tok != token.CONST {
				continue
			}
			for _, spec := range consts.Specs {
				c := spec.(*ast.ValueSpec)
				if len(c.Values) != 1 || !strings.HasPrefix(c.Names[0].Name, "Type") {
					continue
				}
				l, ok := c.Values[0].(*ast.BasicLit)
				if !ok {
					t.Errorf("the constant %s is not a literal", c.Names[0].Name)
					continue
				}
				typ, _ := strconv.Unquote(l.Value)
				if want := "Type" + camelCase(typ); c.Names[0].Name != want {
					t.Errorf("the constant of %s is %s, want %s", typ, c.Names[0].Name, want)
				}
				types = append(types, typ)
			}
		}
	}
	return types
}
