package httpapi

import (
	"net/http"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
)

// document adds the operation to the OpenAPI document, with the roles that may call it
// and the answers that it may give.
func (a *API) document(op *huma.Operation, roles []domain.Role) {
	errs := append(slices.Clone(op.Errors), http.StatusInternalServerError, http.StatusServiceUnavailable)
	if len(roles) > 0 {
		errs = append(errs, http.StatusUnauthorized, http.StatusForbidden)
		op.Security = []map[string][]string{{"bearer": {}}}
		names := make([]string, len(roles))
		for i, r := range roles {
			names[i] = string(r)
		}
		op.Description = strings.TrimSpace(op.Description + "\n\nRoles: " + strings.Join(names, ", ") + ".")
	}
	responses := make(map[string]*huma.Response, len(op.Responses)+len(errs))
	for status, r := range op.Responses {
		responses[status] = r
	}
	for _, status := range errs {
		key := strconv.Itoa(status)
		if responses[key] != nil {
			continue
		}
		r := &huma.Response{Description: http.StatusText(status), Content: map[string]*huma.MediaType{problemJSON: {Schema: a.problem}}}
		switch status {
		case http.StatusUnauthorized:
			r.Headers = map[string]*huma.Param{"WWW-Authenticate": {Schema: &huma.Schema{Type: huma.TypeString}}}
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			r.Headers = map[string]*huma.Param{"Retry-After": {Description: "Seconds.", Schema: &huma.Schema{Type: huma.TypeInteger}}}
		}
		responses[key] = r
	}
	op.Responses = responses
	a.OpenAPI.AddOperation(op)

	// A field that has no value is left out and is never null. huma makes every array
	// nullable.
	for _, s := range a.OpenAPI.Components.Schemas.Map() {
		notNull(s)
	}
	for _, p := range op.Parameters {
		notNull(p.Schema)
	}
	if op.RequestBody != nil {
		for _, m := range op.RequestBody.Content {
			notNull(m.Schema)
		}
	}
	for _, r := range op.Responses {
		for _, m := range r.Content {
			notNull(m.Schema)
		}
	}
}

func notNull(s *huma.Schema) {
	if s == nil {
		return
	}
	s.Nullable = false
	notNull(s.Items)
	for _, p := range s.Properties {
		notNull(p)
	}
	if more, ok := s.AdditionalProperties.(*huma.Schema); ok {
		notNull(more)
	}
}

// schemaNames returns a function that names schemas after their types. If two types have
// the same name, the second gets the name of its package too, because the command side
// and the query side use the same nouns.
func schemaNames() func(reflect.Type, string) string {
	taken := map[string]reflect.Type{}
	return func(t reflect.Type, hint string) string {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		name := huma.DefaultSchemaNamer(t, hint)
		if t.Kind() != reflect.Struct {
			return name
		}
		if first, ok := taken[name]; ok && first != t {
			if p := path.Base(t.PkgPath()); t.Name() != "" {
				name = strings.ToUpper(p[:1]) + p[1:] + name
			}
		}
		taken[name] = t
		return name
	}
}
