package settings

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// HideSecrets makes sure that no secret is among the arguments of this process, because
// everybody on the machine can see arguments (ps). If there is one, it moves it to the
// environment, which only the user of the process can see, and runs the program again in
// the same process with the other arguments. Then it returns only if that fails.
func HideSecrets(commands *kong.Node, args []string) error {
	rest, variables := hidden(commands, args)
	if len(variables) == 0 {
		return nil
	}
	program, err := os.Executable()
	for name, value := range variables {
		// The flag counts more than what the environment says.
		if err == nil {
			err = os.Setenv(name, value)
		}
		if err == nil {
			err = os.Unsetenv(name + "_FILE")
		}
	}
	if err == nil {
		err = syscall.Exec(program, append([]string{os.Args[0]}, rest...), os.Environ())
	}
	return fmt.Errorf("a secret among the arguments could not be hidden from ps: %w. Set it in the environment instead", err)
}

// hidden returns the arguments without secrets, and the secrets by the names of their
// variables.
func hidden(commands *kong.Node, args []string) (rest []string, variables map[string]string) {
	names := map[string]string{} // of variables, by flag
	var collect func(*kong.Node)
	collect = func(n *kong.Node) {
		for _, f := range n.Flags {
			if f.Tag.Has(secretTag) && len(f.Envs) > 0 {
				names["--"+f.Name] = f.Envs[0]
			}
		}
		for _, c := range n.Children {
			collect(c)
		}
	}
	collect(commands)
	variables = map[string]string{}
	for i := 0; i < len(args); i++ {
		flag, value, joined := strings.Cut(args[i], "=")
		name := names[flag]
		switch {
		case args[i] == "--":
			return append(rest, args[i:]...), variables
		case name == "", !joined && i+1 == len(args):
			rest = append(rest, args[i])
			continue
		case !joined:
			i++
			value = args[i]
		}
		variables[name] = value
	}
	return rest, variables
}
