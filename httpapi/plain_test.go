package httpapi

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tomato/domain"
)

// plainBody has a field of every kind that plain can read.
type plainBody struct {
	ID    ID      `json:"id"`
	Order OrderID `json:"order,omitempty"`
	Text  Text    `json:"text,omitempty"`
	Line  Line    `json:"line,omitempty"`
	Code  string  `json:"code,omitempty" pattern:"^[A-Z]{3}$"`
	Free  string  `json:"free,omitempty" maxLength:"3"`
	Small int8    `json:"small,omitempty"`
	Count int     `json:"count,omitempty" minimum:"1" maximum:"100"`
	Odd   int64   `json:"odd,omitempty" exclusiveMinimum:"0" multipleOf:"5"`
	Open  bool    `json:"open,omitempty"`
	Lines []struct {
		ID ID `json:"id"`
	} `json:"lines,omitempty" minItems:"1" maxItems:"3"`
	Tags []string      `json:"tags,omitempty"`
	At   *domain.Point `json:"at,omitempty"`
	To   struct {
		Point domain.Point `json:"point"`
		Note  *Text        `json:"note,omitempty"`
	} `json:"to"`
	When *time.Time `json:"when,omitempty"`
}

func bothWays(registry huma.Registry, s *huma.Schema, read reader, body []byte) (plain, long plainBody, taken, good bool) {
	taken = readPlain(body, read, reflect.ValueOf(&plain).Elem())
	if !json.Valid(body) {
		return plain, long, taken, false
	}
	check := validation{registry: registry}
	check.value(s, body)
	good = len(check.faults) == 0 && json.Unmarshal(body, &long) == nil
	return plain, long, taken, good
}

// TestPlain compares plain with validation on bodies that are valid or nearly valid.
// plain must refuse what validation refuses, must read the rest in the same way, and must
// accept every body that has nothing rare in it.
func TestPlain(t *testing.T) {
	t.Parallel()
	registry := huma.NewMapRegistry("#/components/schemas/", schemaNames())
	registry.RegisterTypeAlias(reflect.TypeFor[domain.Point](), reflect.TypeFor[Point]())
	s := registry.Schema(reflect.TypeFor[plainBody](), true, "plain")
	read := plainReader(registry, s, reflect.TypeFor[plainBody](), 0)
	if read == nil {
		t.Fatal("the body has no short way")
	}
	check := func(t rapid.TB, body string, plainly bool) {
		if !utf8.ValidString(body) { // it is refused before
			return
		}
		plain, long, taken, good := bothWays(registry, s, read, []byte(body))
		switch {
		case taken && !good:
			t.Errorf("taken, although it has a fault: %s", body)
		case taken && !cmp.Equal(plain, long):
			t.Errorf("read otherwise: %s\n%s", body, cmp.Diff(long, plain))
		case !taken && !cmp.Equal(plain, plainBody{}):
			t.Errorf("given up, but not empty: %s\n%+v", body, plain)
		case plainly && !taken:
			t.Errorf("not taken: %s", body)
		}
	}
	const point = `{"type":"Point","coordinates":[77.5,-12.25]}`
	const whole = "\n" + `{ "id" : "a-b_C9", "order":"019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f", "text":" é<&> ", "line":" a b ", "code":"INR", "free":"äöü", "small":-128,
		"count":100, "odd":25, "open":false, "lines":[{"id":"x"} , {"id":"y"},{"id":"z"}], "tags":[], "at":{"coordinates":[-180,90,0.5],"type":"Point"},
		"to":{"note":"n","point":` + point + `},"when":"2026-03-01T12:30:00.123+05:30" }` + "\t\r\n"
	for _, body := range []string{whole, `{"id":"a","to":{"point":` + point + `}}`} {
		check(t, body, true)
		for i := range body { // the end is missing
			check(t, body[:i], false)
		}
		for i := range body { // one character is missing or changed
			check(t, body[:i]+body[i+1:], false)
			for _, c := range []string{"0", "1", "-", ".", "e", `"`, `\`, "{", "}", "[", "]", ",", ":", " ", "a", "A", "\x00", "\x1f", "null", `"a":1,`, "\\u0041"} {
				check(t, body[:i]+c+body[i:], false)
				check(t, body[:i]+c+body[i+1:], false)
			}
		}
	}
	fields := []string{"id", "ID", "order", "text", "line", "code", "free", "small", "count", "odd", "open", "lines", "tags", "at", "to", "when", "more", ""}
	values := []string{`"a"`, `""`, `"INR"`, `"019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f"`, `"2026-03-01T12:30:00Z"`, `"2026-03-01"`, `" "`, `"\u0000"`, "\"a\u0085b\"", "\"\u200b\"", `"\ud800"`, `"\ud83d\ude00"`, `"abcd"`,
		"0", "-0", "1", "5", "100", "101", "128", "-129", "1.0", "1e2", "0.5", "01", "9223372036854775807", "9223372036854775808", "1e999", "true", "false", "null",
		"[]", `["a"]`, `[{"id":"a"}]`, `[{"id":"a"},{"id":"b"},{"id":"c"},{"id":"d"}]`, `[null]`, "{}", point, `{"point":` + point + `}`,
		`{"point":` + point + `,"point":` + point + `}`, `{"type":"Point","coordinates":[181,0]}`, `{"type":"Point","coordinates":[0,91]}`,
		`{"type":"Point","coordinates":[0]}`, `{"type":"Point","coordinates":[0,0,0,0]}`, `{"type":"point","coordinates":[0,0]}`, `{"type":"Point","type":"Point","coordinates":[0,0]}`}
	rapid.Check(t, func(t *rapid.T) {
		body := "{"
		for i, name := range rapid.SliceOfN(rapid.SampledFrom(fields), 0, 6).Draw(t, "names") {
			if i > 0 {
				body += ","
			}
			body += `"` + name + `":` + rapid.SampledFrom(values).Draw(t, "value")
		}
		if rapid.Bool().Draw(t, "required") {
			if body != "{" {
				body += ","
			}
			body += `"id":"a","to":{"point":` + point + "}"
		}
		check(t, body+"}", false)
	})
}
