package httpapi

import (
	"context"
	"encoding"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
)

// Register adds an operation to the router and to the OpenAPI document. It panics on a
// programming error, such as a field of a type that cannot be read.
//
// roles are the roles that may call the operation. If there are none, no token is
// needed. The package comment has the order of checks. The handler is called with a
// valid request only, and Actor(ctx) returns the caller.
//
// I is a struct with these fields, which may be in embedded structs:
//
//   - Parameters, with the tag `path:"id"`, `query:"limit"` or `header:"If-Match"`.
//     Their types are strings, numbers, booleans, time.Time,
//     encoding.TextUnmarshaler, and pointers to them, which are nil if the parameter
//     is absent. A query parameter may be a slice, and then may be repeated. The tags
//     `required:"true"` and `default:"50"` mean the same as in huma. A Body has no
//     defaults.
//   - Body, which is JSON. If there is no body, or an empty one, it is read as {}.
//   - RawBody []byte, which is the body's bytes as they came. Without a field Body,
//     neither the media type nor the syntax of the body is checked.
//
// All fields may have huma's tags (minimum, maxLength, pattern, enum, doc and so on).
// Field names in a body must be exact. Unknown fields and null are faults. Unknown
// query parameters are ignored. If *I has the method Faults() []FieldError, it is
// called when there are no other faults, for checks that need several fields.
//
// O is a struct with these fields:
//
//   - Body, which is written as JSON, or as it is if it is a []byte;
//   - headers, with the tag `header`; empty ones are left out;
//   - Status int. If it is 0, the status is op.DefaultStatus, and if that is 0 too, it
//     is 200, or 204 without a Body.
//
// op must have Method and Path. op.Errors has the statuses that the handler may answer
// beside 400, 401, 403, 408, 413, 415, 422, 500 and 503, which are documented where they
// can occur. For each further status of success, op.Responses has an empty entry.
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

// Handle adds an operation whose handler reads the request and writes the answer itself.
// Token and role are checked. op is documented as it is; security and errors are added.
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
	if op.Method != http.MethodGet && slices.Contains(roles, domain.Support) {
		panic("httpapi: " + op.Method + " " + op.Path + " is for role support, which only reads")
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var actor domain.Actor
		if len(roles) > 0 {
			token, err := a.auth.Authenticate(TokenFromRequest(r))
			if err != nil {
				Refuse(w, r, FromError("", err))
				return
			}
			actor = token.Actor
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

// request describes an input struct: where each part of a request goes.
type request struct {
	registry huma.Registry
	params   []param
	query    bool         // there are query parameters
	body     []int        // the index of the field Body; nil: none
	rawBody  []int        // the index of the field RawBody; nil: none
	schema   *huma.Schema // of the body; nil: the body is not JSON, or is not read
	plain    reader       // of the body; nil: only validation can read it
	maxBytes int64

	strangers *budget // for the body, if callers need no token; nil: no limit
}

type param struct {
	index    []int
	in, name string
	header   string // the name in its form in http.Header
	schema   *huma.Schema
	kind     string            // the type of the schema, or of its items if it is an array
	valid    func(string) bool // checks the string instead of the schema; nil: none
	list     bool              // the header is a list, which may come in several lines
	required bool
	fallback []string // the default
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
