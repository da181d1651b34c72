package settings

import (
	"fmt"
	"os"
	"strings"

	"github.com/alecthomas/kong"
)

// SecretFiles returns the option of a command line whose secrets may be in files, as
// orchestrators provide them. Where a flag with the tag secret has the variable NAME, the
// variable NAME_FILE may name a file that has the value. White space around the value is
// ignored. A list has its elements on lines of their own, or separated by commas.
func SecretFiles() kong.Option { return kong.Resolvers(kong.ResolverFunc(fromFile)) }

// fromFile returns the value of a flag that is in a file, or nil. Its errors quote no secret.
func fromFile(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if !flag.Tag.Has(secretTag) || len(flag.Envs) == 0 {
		return nil, nil
	}
	name := flag.Envs[0]
	path := os.Getenv(name + "_FILE")
	if path == "" {
		return nil, nil
	}
	if os.Getenv(name) != "" {
		return nil, fmt.Errorf("%s and %s_FILE are both set: unset one of them", name, name)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s_FILE: %w", name, err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return nil, fmt.Errorf("%s_FILE: %s is empty", name, path)
	}
	if flag.IsSlice() {
		lines := strings.Fields(strings.NewReplacer(",", " ").Replace(text))
		return strings.Join(lines, ","), nil
	}
	return text, nil
}

// secretTag is the tag of the flags whose values are secret.
const secretTag = "secret"
