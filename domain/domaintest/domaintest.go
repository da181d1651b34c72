// Package domaintest is what the tests of the aggregates share: tables that
// read like the transitions document, and golden wire files.
package domaintest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
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

// update creates golden files that are missing. It never overwrites one: what
// stands on a topic can not be edited either.
var update = flag.Bool("update", false, "create missing golden files; existing ones are never touched")

// Columns splits a line of a table at its bars.
func Columns(line string) []string {
	columns := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
	for i := range columns {
		columns[i] = strings.TrimSpace(columns[i])
	}
	return columns
}

// Outcome puts what Decide answered into the words of the table: EVENT_TYPE,
// = (already so), ! (invalid_transition, which must name currentStatus), 404,
// 403, or the refusal's code.
func Outcome(t testing.TB, e domain.Event, err error, currentStatus string) string {
	t.Helper()
	var r *domain.Refusal
	switch {
	case err != nil && !isNil(e):
		t.Errorf("an event and an error: %#v, %v", e, err)
	case errors.As(err, &r):
		switch r.Code {
		case domain.InvalidTransition:
			if r.CurrentStatus != currentStatus {
				t.Errorf("invalid_transition names currentStatus %q, want %q", r.CurrentStatus, currentStatus)
			}
			return "!"
		case domain.NotFound:
			return "404"
		case domain.Forbidden:
			return "403"
		}
		return string(r.Code)
	case err != nil:
		t.Errorf("an error that is no refusal: %v", err)
		return "error"
	case isNil(e):
		return "="
	}
	return e.EventType()
}

func isNil(e domain.Event) bool { return e == nil || reflect.ValueOf(e).Kind() == reflect.Pointer }

// Golden holds the wire form of each event against testdata/<TYPE>.v1.json, in
// both directions, and holds that the samples are one of each of contract's
// types, and that these are all that the package declares.
func Golden[E domain.Event](t *testing.T, decode func(eventType string, data []byte) (E, error), contract []string, samples ...E) {
	t.Helper()
	slices.Sort(contract)
	if declared := declaredTypes(t); !slices.Equal(declared, contract) {
		t.Errorf("the package declares %v\nthe contract lists   %v", declared, contract)
	}
	var sampled, files []string
	for _, e := range samples {
		sampled = append(sampled, e.EventType())
		t.Run(e.EventType(), func(t *testing.T) { golden(t, decode, e) })
	}
	if slices.Sort(sampled); !slices.Equal(sampled, contract) {
		t.Errorf("there are samples of %v\nthe contract lists  %v", sampled, contract)
	}
	paths, err := filepath.Glob("testdata/*.v1.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		files = append(files, strings.TrimSuffix(filepath.Base(p), ".v1.json"))
	}
	if slices.Sort(files); !slices.Equal(files, contract) {
		t.Errorf("there are golden files for %v\nthe contract lists       %v", files, contract)
	}
	if e, err := decode("NO_SUCH_EVENT", []byte("{}")); err == nil {
		t.Errorf("an unknown type decodes as %#v", e)
	}
}

func golden[E domain.Event](t *testing.T, decode func(string, []byte) (E, error), e E) {
	path := filepath.Join("testdata", e.EventType()+".v1.json")
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
	back, err := decode(e.EventType(), want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, e) {
		t.Errorf("decoded:\n%#v\nwant:\n%#v", back, e)
	}
	if _, err := decode(e.EventType(), []byte("[")); err == nil {
		t.Error("broken JSON decodes")
	}
}

// declaredTypes reads from the source what the EventType methods return.
func declaredTypes(t *testing.T) (types []string) {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv == nil || fn.Name.Name != "EventType" {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					s, _ := strconv.Unquote(l.Value)
					types = append(types, s)
				}
				return true
			})
		}
	}
	slices.Sort(types)
	return types
}
