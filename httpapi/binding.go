package httpapi

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
)

// bind reads the request into the input struct v. It returns a problem if the request
// is not valid.
func (in *request) bind(w http.ResponseWriter, r *http.Request, held *hold, v reflect.Value) *Problem {
	var body []byte
	if in.schema != nil || in.rawBody != nil {
		var p *Problem
		if body, p = in.read(w, r, held); p != nil {
			return p
		}
	}
	if in.rawBody != nil {
		v.FieldByIndex(in.rawBody).SetBytes(body)
	}
	done := in.schema == nil // nothing is left to do about the body
	if !done {
		if len(body) == 0 {
			body = noFields
		}
		valid := utf8.Valid(body)
		switch {
		case in.body == nil:
			done = bytes.Equal(body, noFields)
		case in.plain != nil && valid:
			done = readPlain(body, in.plain, v.FieldByIndex(in.body))
		}
		if !done && (!valid || !json.Valid(body)) {
			return NewProblem(http.StatusBadRequest, "malformed_json", "The body is not one JSON value in UTF-8.")
		}
	}

	check := validation{registry: in.registry}
	if len(in.params) > 0 {
		var query url.Values
		if in.query && r.URL.RawQuery != "" {
			var err error
			if query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
				check.at = append(check.at[:0], "query"...)
				check.fault("malformed query string")
			}
		}
		for i := range in.params {
			in.params[i].bind(&check, r, query, v)
		}
	}
	if !done {
		check.at = append(check.at[:0], "body"...)
		check.value(in.schema, body)
	}
	if len(check.faults) > 0 {
		return Invalid(check.faults...)
	}
	if in.body != nil && !done {
		// The body is valid, and is now read into the struct. That fails only if
		// a field is given twice with different types, because the validation
		// checks only the last one.
		if err := json.Unmarshal(body, v.FieldByIndex(in.body).Addr().Interface()); err != nil {
			return Invalid(FieldError{"body", "not readable: a value has the wrong type or range"})
		}
	}
	return nil
}

// bind reads a parameter into its field of v, and adds its faults to check.
func (p *param) bind(check *validation, r *http.Request, query url.Values, v reflect.Value) {
	var values []string
	switch p.in {
	case "query":
		values = query[p.name]
	case "header":
		values = r.Header[p.header]
		if len(values) > 1 && p.list {
			values = []string{strings.Join(values, ", ")}
		}
		if len(values) == 1 && values[0] == "" && !p.list { // an empty If-Match is a fault; it does not mean that there is no condition
			values = nil
		}
	case "path":
		s := chi.URLParam(r, p.name)
		if r.URL.RawPath != "" { // chi has matched the escaped path then
			if u, err := url.PathUnescape(s); err == nil {
				s = u
			}
		}
		if p.valid != nil && p.valid(s) {
			v.FieldByIndex(p.index).SetString(s)
			return
		}
		values = []string{s}
	}
	if len(values) == 0 && !p.required && p.fallback == nil {
		return
	}
	check.at = append(append(append(check.at[:0], p.in...), '.'), p.name...)
	if len(values) == 0 {
		if p.required {
			check.fault("required")
			return
		}
		values = p.fallback
	}
	for _, s := range values {
		if !p.list && !utf8.ValidString(s) { // an entity tag may contain any octet
			check.fault("expected UTF-8")
			return
		}
	}
	before := len(check.faults)
	if p.schema.Type == huma.TypeArray {
		if check.length(p.schema, len(values)) {
			n := len(check.at)
			for i, s := range values {
				check.index(n, i)
				check.scalar(p.schema.Items, p.typed(s))
			}
			check.at = check.at[:n]
		}
	} else if len(values) > 1 {
		check.fault("given more than once")
	} else {
		check.scalar(p.schema, p.typed(values[0]))
	}
	if len(check.faults) > before {
		return
	}
	f := v.FieldByIndex(p.index)
	if f.Kind() == reflect.Pointer {
		f.Set(reflect.New(f.Type().Elem()))
		f = f.Elem()
	}
	if p.schema.Type != huma.TypeArray {
		if message := set(f, values[0]); message != "" {
			check.fault(message)
		}
		return
	}
	f.Set(reflect.MakeSlice(f.Type(), len(values), len(values)))
	for i, s := range values {
		if message := set(f.Index(i), s); message != "" {
			check.fault(message)
			return
		}
	}
}

// typed returns s with the type that the schema expects: a json.Number, a bool or a
// string. It returns nil if s is no bool and should be one.
func (p *param) typed(s string) any {
	switch p.kind {
	case huma.TypeInteger, huma.TypeNumber:
		if _, err := strconv.ParseFloat(s, 64); err == nil || errors.Is(err, strconv.ErrRange) {
			return json.Number(s)
		}
	case huma.TypeBoolean:
		if s == "true" || s == "false" {
			return s == "true"
		}
		return nil
	}
	return s
}

// set parses s into f and returns the fault's message, or "".
func set(f reflect.Value, s string) string {
	if f.Type() == timeType {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return "expected string to be RFC 3339 date-time"
		}
		f.Set(reflect.ValueOf(t))
		return ""
	}
	if u, ok := f.Addr().Interface().(encoding.TextUnmarshaler); ok {
		err := u.UnmarshalText([]byte(s))
		var ours fault
		if errors.As(err, &ours) {
			return ours.Error()
		}
		if err != nil { // the text of err may contain the value, so it is not shown
			return "not valid"
		}
		return ""
	}
	switch f.Kind() {
	case reflect.String:
		f.SetString(s)
	case reflect.Bool:
		f.SetBool(s == "true")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(s, 10, f.Type().Bits())
		if err != nil {
			return "expected integer in range"
		}
		f.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(s, 10, f.Type().Bits())
		if err != nil {
			return "expected integer in range"
		}
		f.SetUint(n)
	default: // a float: registration accepts no other kind
		n, err := strconv.ParseFloat(s, f.Type().Bits())
		if err != nil {
			return "expected number in range"
		}
		f.SetFloat(n)
	}
	return ""
}
