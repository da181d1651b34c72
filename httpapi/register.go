package httpapi

import (
	"bytes"
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"tomato/domain"
)

// Register adds an operation to the router and to the OpenAPI document. It
// panics on a programming error, such as a field of a type it cannot read.
//
// roles are who may call it; none: no token is needed. The checks are those of
// the package comment; the handler gets a valid request only, and Actor(ctx)
// tells who calls.
//
// I is a struct with the fields of the request; embedded structs count as
// theirs:
//
//   - `path:"id"`, `query:"limit"`, `header:"If-Match"`: strings, numbers,
//     booleans, time.Time, encoding.TextUnmarshaler, pointers to them (nil when
//     absent) and, for query, slices of them (repeated parameters);
//     `required:"true"` and `default:"50"` as in huma (no defaults in a Body);
//   - Body: JSON. No body, or an empty one, is read as {};
//   - RawBody []byte: the bytes as they came. Without Body they are anything:
//     neither the media type nor the syntax is checked.
//
// Fields take huma's tags (minimum, maxLength, pattern, enum, doc …). Field names
// of a body are exact, unknown ones are faults, and so is null; unknown query
// parameters are ignored. If *I has the method Faults() []FieldError, it is
// asked when all else is good: for what one field alone cannot tell.
//
// O is a struct with a field Body (JSON; a []byte goes out as it is), `header`
// fields (empty ones are left out) and Status int (0: op.DefaultStatus, which
// is 200 unless set, or 204 without Body).
//
// Of op, Method and Path are needed. op.Errors lists what the handler may
// answer beyond 400, 401, 403, 408, 413, 415, 422, 500 and 503, which are documented
// where they can occur. A further success status is documented by an empty entry
// in op.Responses.
func Register[I, O any](a *API, op huma.Operation, roles []domain.Role, handler func(context.Context, *I) (*O, error)) {
	in := readRequest(a, &op, reflect.TypeFor[I]())
	if len(roles) == 0 {
		in.strangers = a.strangers
	}
	out := readResponse(a, &op, reflect.TypeFor[O]())
	checkFaults := reflect.TypeFor[*I]().Implements(reflect.TypeFor[faulter]())

	a.handle(op, roles, func(w http.ResponseWriter, r *http.Request, actor domain.Actor) {
		var i I
		held := hold{of: in.strangers}
		defer held.release()
		if p := in.bind(w, r, &held, reflect.ValueOf(&i).Elem()); p != nil {
			a.fail(w, r, p)
			return
		}
		if checkFaults {
			if faults := any(&i).(faulter).Faults(); len(faults) > 0 {
				a.fail(w, r, Invalid(faults...))
				return
			}
		}
		ctx := r.Context()
		if len(roles) > 0 {
			ctx = WithActor(ctx, actor)
		}
		o, err := handler(ctx, &i)
		if err != nil {
			a.fail(w, r, FromError("resource", err))
			return
		}
		if o == nil {
			w.WriteHeader(out.status)
			return
		}
		if err := out.write(w, reflect.ValueOf(o).Elem()); err != nil {
			a.fail(w, r, FromError("", err))
		}
	})
}

type faulter interface{ Faults() []FieldError }

// Handle adds an operation that reads and answers by itself, with the checks of
// token and role, and documents op as it is, but for security and errors.
func (a *API) Handle(op huma.Operation, roles []domain.Role, h http.HandlerFunc) {
	a.handle(op, roles, func(w http.ResponseWriter, r *http.Request, actor domain.Actor) {
		if len(roles) > 0 {
			r = r.WithContext(WithActor(r.Context(), actor))
		}
		h(w, r)
	})
}

func (a *API) handle(op huma.Operation, roles []domain.Role, next func(http.ResponseWriter, *http.Request, domain.Actor)) {
	if len(roles) > 0 && a.auth == nil {
		panic("httpapi: " + op.Path + " has roles, but there is no Authenticator")
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var actor domain.Actor
		if len(roles) > 0 {
			var err error
			if actor, _, err = a.auth.Authenticate(TokenFromRequest(r)); err != nil {
				Refuse(w, r, FromError("", err))
				return
			}
			if !slices.Contains(roles, actor.Role) {
				Refuse(w, r, NewProblem(http.StatusForbidden, "forbidden", "The role "+string(actor.Role)+" may not do this."))
				return
			}
		}
		next(w, r, actor)
	})
	if !op.Hidden {
		a.document(&op, roles)
	}
	if !strings.Contains(op.Path, "{") {
		a.literals[op.Path] = append(a.literals[op.Path], op.Method)
	}
	a.Router.Method(op.Method, op.Path, h)
}

// request knows how to fill an input struct.
type request struct {
	registry huma.Registry
	params   []param
	query    bool // there are query parameters
	body     []int
	rawBody  []int
	schema   *huma.Schema // of the body; nil: not JSON, or not read at all
	plain    reader       // of the body, where it can be read at once
	maxBytes int64

	strangers *budget // of the body, where callers have not proved who they are
}

type param struct {
	index    []int
	in, name string
	header   string // the name as http.Header has it
	schema   *huma.Schema
	kind     string            // of the schema, or of the items of an array
	valid    func(string) bool // of a string that is checked by hand
	list     bool              // a header that may come in several lines, as one list
	required bool
	fallback []string
}

var (
	timeType            = reflect.TypeFor[time.Time]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func readRequest(a *API, op *huma.Operation, t reflect.Type) *request {
	if op.Method == "" || op.Path == "" || t.Kind() != reflect.Struct {
		panic("httpapi: an operation needs a method, a path and an input struct")
	}
	if op.OperationID == "" {
		op.OperationID = strings.Trim(strings.Map(func(r rune) rune {
			if r == '/' || r == '{' || r == '}' {
				return '-'
			}
			return r
		}, strings.ToLower(op.Method)+op.Path), "-")
	}
	in := &request{registry: a.OpenAPI.Components.Schemas, maxBytes: op.MaxBodyBytes}
	if in.maxBytes <= 0 {
		in.maxBytes = maxBodyBytes
	}
	in.fields(op, t, nil)
	command := op.Method == http.MethodPost || op.Method == http.MethodPut || op.Method == http.MethodPatch
	if in.body == nil && in.rawBody == nil && command {
		in.schema = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: false}
	}
	if in.schema != nil {
		s := in.schema
		if s.Ref != "" {
			s = in.registry.SchemaFromRef(s.Ref)
		}
		op.RequestBody = &huma.RequestBody{Required: len(s.Required) > 0, Content: map[string]*huma.MediaType{"application/json": {Schema: in.schema}}}
		op.Errors = append(op.Errors, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity)
	}
	if in.schema != nil || in.rawBody != nil {
		op.Errors = append(op.Errors, http.StatusBadRequest, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge)
	}
	if len(in.params) > 0 {
		op.Errors = append(op.Errors, http.StatusUnprocessableEntity)
	}
	return in
}

func (in *request) fields(op *huma.Operation, t reflect.Type, at []int) {
	for i := range t.NumField() {
		f := t.Field(i)
		index := append(slices.Clone(at), i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			in.fields(op, f.Type, index)
			continue
		}
		if !f.IsExported() {
			continue
		}
		switch f.Name {
		case "Body":
			in.body = index
			in.schema = huma.SchemaFromField(in.registry, f, op.OperationID+"-request")
			in.plain = plainReader(in.registry, in.schema, f.Type, 0)
			continue
		case "RawBody":
			in.rawBody = index
			if op.RequestBody == nil {
				op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{"*/*": {Schema: &huma.Schema{}}}}
			}
			continue
		}
		p := param{index: index}
		for _, in := range []string{"path", "query", "header"} {
			if name := f.Tag.Get(in); name != "" {
				p.in = in
				p.name, _, _ = strings.Cut(name, ",")
			}
		}
		if p.in == "" {
			continue
		}
		p.schema = huma.SchemaFromField(in.registry, f, "")
		p.required = p.in == "path" || f.Tag.Get("required") == "true"
		p.header = http.CanonicalHeaderKey(p.name)
		switch f.Type {
		case reflect.TypeFor[ID]():
			p.valid = domain.ValidID
		case reflect.TypeFor[OrderID]():
			p.valid = validOrderID
		case reflect.TypeFor[IfMatch]():
			p.list = true
		}
		base := f.Type
		if base.Kind() == reflect.Pointer {
			base = base.Elem()
		}
		p.kind = p.schema.Type
		if p.kind == huma.TypeArray {
			if p.in != "query" {
				panic("httpapi: only query parameters can be repeated: " + p.name)
			}
			base, p.kind = base.Elem(), p.schema.Items.Type
		}
		switch p.kind {
		case huma.TypeString, huma.TypeBoolean, huma.TypeInteger, huma.TypeNumber:
		default:
			panic(fmt.Sprintf("httpapi: parameter %s has a type that cannot be read: %s", p.name, f.Type))
		}
		if base.Kind() == reflect.Struct && base != timeType && !reflect.PointerTo(base).Implements(textUnmarshalerType) {
			panic(fmt.Sprintf("httpapi: parameter %s has a type that cannot be read: %s", p.name, f.Type))
		}
		if d := f.Tag.Get("default"); d != "" {
			p.fallback = []string{d}
		}
		in.query = in.query || p.in == "query"
		in.params = append(in.params, p)
		doc := &huma.Param{Name: p.name, In: p.in, Required: p.required, Description: p.schema.Description, Schema: p.schema}
		if p.schema.Type == huma.TypeArray {
			explode := true
			doc.Explode = &explode
		}
		op.Parameters = append(op.Parameters, doc)
	}
}

var noFields = []byte("{}")

// bind reads the request into the input struct v.
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
	done := in.schema == nil // the body is read and has no fault
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
		// The bytes are read once more, into the struct. What the schema
		// takes the struct takes; what is left is a name given twice with
		// different types, of which the tree has seen the last only.
		if err := json.Unmarshal(body, v.FieldByIndex(in.body).Addr().Interface()); err != nil {
			return Invalid(FieldError{"body", "not readable: a value has the wrong type or range"})
		}
	}
	return nil
}

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
		if len(values) == 1 && values[0] == "" && !p.list { // an empty If-Match is a mistake, not the lack of a condition
			values = nil
		}
	case "path":
		s := chi.URLParam(r, p.name)
		if r.URL.RawPath != "" { // then chi matches the escaped path
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
		if !p.list && !utf8.ValidString(s) { // a tag may hold any octet
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

// typed gives the value that the schema is checked against.
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
		return nil // a fault
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
		if err != nil { // its text may quote the value
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
	default: // floats: the registration lets nothing else through
		n, err := strconv.ParseFloat(s, f.Type().Bits())
		if err != nil {
			return "expected number in range"
		}
		f.SetFloat(n)
	}
	return ""
}

// response knows how to write an output struct.
type response struct {
	status      int
	headers     []outHeader
	statusIndex []int
	body        []int
	raw         bool // the body is []byte
	byHand      bool // the body is a domain.JSONWriter
}

type outHeader struct {
	index []int
	name  string
}

func readResponse(a *API, op *huma.Operation, t reflect.Type) *response {
	if t.Kind() != reflect.Struct {
		panic("httpapi: an operation needs an output struct")
	}
	out := &response{}
	headers := map[string]*huma.Param{}
	var content map[string]*huma.MediaType
	for _, f := range reflect.VisibleFields(t) {
		switch name := f.Tag.Get("header"); {
		case f.Anonymous || !f.IsExported():
		case f.Name == "Status":
			out.statusIndex = f.Index
		case f.Name == "Body":
			out.body = f.Index
			out.raw = f.Type == reflect.TypeFor[[]byte]()
			out.byHand = reflect.PointerTo(f.Type).Implements(reflect.TypeFor[domain.JSONWriter]())
			mediaType := f.Tag.Get("contentType")
			if mediaType == "" {
				mediaType = "application/json"
			}
			content = map[string]*huma.MediaType{mediaType: {}}
			if !out.raw {
				content[mediaType].Schema = huma.SchemaFromField(a.OpenAPI.Components.Schemas, f, op.OperationID+"-response")
			}
		case name != "":
			switch f.Type.Kind() {
			case reflect.String, reflect.Int, reflect.Int64:
			default:
				panic("httpapi: the header " + name + " is neither string nor int")
			}
			out.headers = append(out.headers, outHeader{f.Index, http.CanonicalHeaderKey(name)})
			s := huma.SchemaFromField(a.OpenAPI.Components.Schemas, f, "")
			headers[name] = &huma.Param{Schema: s, Description: s.Description}
		}
	}
	if out.status = op.DefaultStatus; out.status == 0 {
		out.status = http.StatusOK
		if out.body == nil {
			out.status = http.StatusNoContent
		}
	}
	responses := map[string]*huma.Response{strconv.Itoa(out.status): {}}
	for status, r := range op.Responses {
		responses[status] = r
	}
	for status, r := range responses {
		if status[0] != '2' {
			continue
		}
		n, _ := strconv.Atoi(status)
		if r.Description == "" {
			r.Description = http.StatusText(n)
		}
		if r.Content == nil && n != http.StatusNoContent {
			r.Content = content
		}
		if r.Headers == nil && len(headers) > 0 {
			r.Headers = headers
		}
	}
	op.Responses = responses
	return out
}

// contentTypeJSON is shared by all answers; whoever adds to it copies it.
var contentTypeJSON = []string{"application/json"}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const maxPooledBytes = 64 << 10

// write answers with the output struct v. On an error nothing has been written.
func (out *response) write(w http.ResponseWriter, v reflect.Value) error {
	status := out.status
	if out.statusIndex != nil {
		if s := int(v.FieldByIndex(out.statusIndex).Int()); s != 0 {
			status = s
		}
	}
	var body []byte
	switch {
	case out.body == nil || status == http.StatusNoContent:
	case out.raw:
		body = v.FieldByIndex(out.body).Bytes()
	default:
		buf := buffers.Get().(*bytes.Buffer)
		defer func() {
			if buf.Cap() <= maxPooledBytes {
				buf.Reset()
				buffers.Put(buf)
			}
		}()
		x := v.FieldByIndex(out.body).Addr().Interface()
		if out.byHand {
			buf.Write(append(domain.AppendJSON(buf.AvailableBuffer(), x.(domain.JSONWriter)), '\n'))
		} else {
			e := json.NewEncoder(buf)
			e.SetEscapeHTML(false)
			if err := e.Encode(x); err != nil {
				buf.Reset()
				return fmt.Errorf("the answer cannot be written: %w", err)
			}
		}
		body = buf.Bytes()
		w.Header()["Content-Type"] = contentTypeJSON
	}
	h := w.Header()
	values := make([]string, 0, len(out.headers)+1) // one array for all
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	for _, o := range out.headers {
		f := v.FieldByIndex(o.index)
		switch {
		case f.Kind() == reflect.String && f.Len() > 0:
			set(o.name, f.String())
		case f.CanInt() && f.Int() != 0:
			set(o.name, strconv.FormatInt(f.Int(), 10))
		}
	}
	if out.body != nil && status != http.StatusNoContent {
		set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if len(body) > 0 {
		_, _ = w.Write(body) // the caller has left: nobody to tell
	}
	return nil
}
