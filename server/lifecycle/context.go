package lifecycle

import "hayloft/image/contextdisk"

// contextFiles are the files of a machine's context disk that the server makes.
func contextFiles(variables map[string]string) (map[string][]byte, error) {
	script, err := contextdisk.Render(variables)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"context.sh": script}, nil
}
