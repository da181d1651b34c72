package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
)

// response describes an output struct: where each part of an answer comes from.
type response struct {
	status      int
	headers     []outHeader
	statusIndex []int
	body        []int
	raw         bool // the body is []byte
	jsonWriter  bool // the body is a domain.JSONWriter
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
			out.jsonWriter = reflect.PointerTo(f.Type).Implements(reflect.TypeFor[domain.JSONWriter]())
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

// contentTypeJSON is shared by all answers and must not be changed.
var contentTypeJSON = []string{"application/json"}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const maxPooledBytes = 64 << 10

// write answers with the output struct v. If it fails, nothing has been written.
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
		if out.jsonWriter {
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
	values := make([]string, 0, len(out.headers)+1) // all headers share one array
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
		_, _ = w.Write(body) // an error means that the caller has left
	}
	return nil
}
