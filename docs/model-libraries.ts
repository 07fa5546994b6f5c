// The entry of this library for the Hub's list of libraries, `packages/tasks/src/model-libraries.ts` of huggingface.js.
// The key is the `library_name` of the model cards. With it the page of a model shows the snippet below and counts
// downloads of the configuration. `repoUrl` is to be the address of the repository where this file is published.

	ecsfusion: {
		prettyLabel: "ecsfusion",
		repoName: "ecsfusion",
		repoUrl: "https://huggingface.co/ecsfusion",
		snippets: snippets.ecsfusion,
		filter: false,
		countDownloads: `path:"config.json"`,
	},

// And for `packages/tasks/src/model-libraries-snippets.ts`:

export const ecsfusion = (model: ModelData): string[] => [
	`# pip install "ecsfusion[audio,train]"
from ecsfusion import FusionForClassification

model = FusionForClassification.from_pretrained("${model.id}")
print(model.modalities)

# A value for each modality: a path, a picture, samples of a sound, a text or numbers. Each may be left out.
model.predict(image="picture.png", audio="sound.wav")`,
	`# The page of the model: pip install "ecsfusion[demo]"
ecsfusion demo ${model.id}`,
];
