# Completion of osp for PowerShell 5 and later. Written by `osp completion`: changes made here get lost.

Register-ArgumentCompleter -Native -CommandName osp -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    function row($command, $key, $kind, $text) {
        [pscustomobject]@{ Command = $command; Key = $key; Kind = $kind; Text = $text }
    }
    # Command, flag, kind of value and help; a switch has no kind.
    $options = @(
        row '' '--version' '' 'Show the version and exit'
        row '' '-V' '' 'Show the version and exit'
        row '' '--help' '' 'Show this message and exit'
        row '' '-h' '' 'Show this message and exit'
        row 'generate' '--style' 'style' 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
        row 'generate' '-s' 'style' 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
        row 'generate' '--output' 'output' '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout [{name}-{style}-{seed}.mp4]'
        row 'generate' '-o' 'output' '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout [{name}-{style}-{seed}.mp4]'
        row 'generate' '--overwrite' '' 'Replace an existing video'
        row 'generate' '-y' '' 'Replace an existing video'
        row 'generate' '--seed' 'seed' 'Equal seeds, equal videos; 1-4 or 3,7 make one video each [random]'
        row 'generate' '--count' 'count' 'So many videos, with seeds one after the other [1]'
        row 'generate' '-c' 'count' 'So many videos, with seeds one after the other [1]'
        row 'generate' '--negative-prompt' 'negative-prompt' 'What to steer away from'
        row 'generate' '-n' 'negative-prompt' 'What to steer away from'
        row 'generate' '--text' 'text' 'Text to video, without a picture'
        row 'generate' '--size' 'size' 'Pixels [the picture''s nearest]'
        row 'generate' '--frames' 'frames' '4k+1, others are rounded up [49]'
        row 'generate' '-f' 'frames' '4k+1, others are rounded up [49]'
        row 'generate' '--seconds' 'seconds' 'The same as a length'
        row 'generate' '-t' 'seconds' 'The same as a length'
        row 'generate' '--fps' 'fps' 'Frames per second [16]'
        row 'generate' '--steps' 'steps' 'Sampler steps [the model''s]'
        row 'generate' '--cfg' 'cfg' 'How strongly the prompt leads; 1 is off and twice as fast [the model''s]'
        row 'generate' '-g' 'cfg' 'How strongly the prompt leads; 1 is off and twice as fast [the model''s]'
        row 'generate' '--cutoff' 'cutoff' '0 to 1: how little of the picture''s detail leads, a ramp, or a sheet of P,P,P [0.1]'
        row 'generate' '--shift' 'shift' 'More means more time on the layout, less on detail [the model''s]'
        row 'generate' '--sampler' 'sampler' 'euler or unipc [the model''s]'
        row 'generate' '--lora' 'lora' 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
        row 'generate' '-l' 'lora' 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
        row 'generate' '--cache' 'cache' 'none, teacache, fbcache or magcache: skip steps that change little [the model''s]'
        row 'generate' '--cache-start' 'cache-start' 'Steps at the start that teacache and magcache always compute [the model''s]'
        row 'generate' '--preview' 'preview' 'latent: a picture of the video while it is made; contact: only a sheet of all seeds after a few steps [none]'
        row 'generate' '--pick' 'pick' 'Finish this seed of a contact sheet'
        row 'generate' '--from' 'from' 'Make it again from a video or its .json, or finish a .latents file; other flags win'
        row 'generate' '--from-file' 'from-file' 'One video per line of a .txt, .jsonl or .csv file'
        row 'generate' '-F' 'from-file' 'One video per line of a .txt, .jsonl or .csv file'
        row 'generate' '--model' 'model' 'One of `osp models` [osp-mini]'
        row 'generate' '-m' 'model' 'One of `osp models` [osp-mini]'
        row 'generate' '--device' 'device' 'auto, cuda, mps or cpu [auto]'
        row 'generate' '--dtype' 'dtype' 'bfloat16, float16 or float32 [the model''s]'
        row 'generate' '--offload' 'offload' 'Where idle weights wait: none, model, group, sequential or disk [what fits]'
        row 'generate' '--quant' 'quant' 'Smaller weights: none, fp8, int8, nf4 or gguf [none, or fp8 where it must be]'
        row 'generate' '--attention' 'attention' 'Kernels: auto, sdpa, flash or sage [auto]'
        row 'generate' '--vae-tiling' '' 'Decode in tiles: less memory, not quite the same picture [where it must be]'
        row 'generate' '--no-vae-tiling' '' 'Decode in tiles: less memory, not quite the same picture [where it must be]'
        row 'generate' '--compile' '' 'Compile the blocks: slow to start, quicker steps [no]'
        row 'generate' '--no-compile' '' 'Compile the blocks: slow to start, quicker steps [no]'
        row 'generate' '--gpus' 'gpus' 'Sample on N graphics cards together [1]'
        row 'generate' '--max-vram' 'max-vram' 'Use no more of the graphics card''s memory, as in 12GB'
        row 'generate' '--max-ram' 'max-ram' 'Plan with no more of the computer''s memory'
        row 'generate' '--offline' '' 'Never touch the network'
        row 'generate' '--metadata' '' 'Keep the recipe in the video and beside it, or nowhere [kept]'
        row 'generate' '--no-metadata' '' 'Keep the recipe in the video and beside it, or nowhere [kept]'
        row 'generate' '--config' 'config' 'Settings in TOML [osp.toml]'
        row 'generate' '--print-config' '' 'Show every setting and where it comes from, and exit'
        row 'generate' '--dry-run' '' 'Show the plan, with bytes and time, and exit'
        row 'generate' '--json' '' 'One JSON object per line on stdout'
        row 'generate' '--quiet' '' 'Say nothing but errors'
        row 'generate' '-q' '' 'Say nothing but errors'
        row 'generate' '--verbose' '' 'Say where each setting comes from'
        row 'generate' '-v' '' 'Say where each setting comes from'
        row 'generate' '--debug' '' 'Show a traceback with an error'
        row 'generate' '--help' '' 'Show this message and exit'
        row 'generate' '-h' '' 'Show this message and exit'
        row 'stylize' '--style' 'style' 'One of `osp styles`, ghibli:0.5, a mixture ink+oil, a change ghibli..ink, a file of your own, or a sheet of ink,oil or all'
        row 'stylize' '-s' 'style' 'One of `osp styles`, ghibli:0.5, a mixture ink+oil, a change ghibli..ink, a file of your own, or a sheet of ink,oil or all'
        row 'stylize' '--output' 'output' '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout; a sheet may also be .png or .jpg [{name}-{style}-{seed}.mp4]'
        row 'stylize' '-o' 'output' '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout; a sheet may also be .png or .jpg [{name}-{style}-{seed}.mp4]'
        row 'stylize' '--overwrite' '' 'Replace an existing video'
        row 'stylize' '-y' '' 'Replace an existing video'
        row 'stylize' '--seed' 'seed' 'Equal seeds, equal videos; 1-4 or 3,7 make one video each [random]'
        row 'stylize' '--count' 'count' 'So many videos, with seeds one after the other [1]'
        row 'stylize' '-c' 'count' 'So many videos, with seeds one after the other [1]'
        row 'stylize' '--strength' 'strength' '0 to 1: how far a video is painted anew [0.6; osp-mini 1]'
        row 'stylize' '--negative-prompt' 'negative-prompt' 'What to steer away from'
        row 'stylize' '-n' 'negative-prompt' 'What to steer away from'
        row 'stylize' '--size' 'size' 'Pixels [the picture''s nearest]'
        row 'stylize' '--frames' 'frames' '4k+1, others are rounded up [49]'
        row 'stylize' '-f' 'frames' '4k+1, others are rounded up [49]'
        row 'stylize' '--seconds' 'seconds' 'The same as a length'
        row 'stylize' '-t' 'seconds' 'The same as a length'
        row 'stylize' '--fps' 'fps' 'Frames per second [16]'
        row 'stylize' '--steps' 'steps' 'Sampler steps [the model''s]'
        row 'stylize' '--cfg' 'cfg' 'How strongly the prompt leads; 1 is off and twice as fast [the model''s]'
        row 'stylize' '-g' 'cfg' 'How strongly the prompt leads; 1 is off and twice as fast [the model''s]'
        row 'stylize' '--cutoff' 'cutoff' '0 to 1: how little of the picture''s detail leads, a ramp, or a sheet of P,P,P [0.1]'
        row 'stylize' '--shift' 'shift' 'More means more time on the layout, less on detail [the model''s]'
        row 'stylize' '--sampler' 'sampler' 'euler or unipc [the model''s]'
        row 'stylize' '--lora' 'lora' 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
        row 'stylize' '-l' 'lora' 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
        row 'stylize' '--cache' 'cache' 'none, teacache, fbcache or magcache: skip steps that change little [the model''s]'
        row 'stylize' '--cache-start' 'cache-start' 'Steps at the start that teacache and magcache always compute [the model''s]'
        row 'stylize' '--preview' 'preview' 'latent: a picture of the video while it is made; contact: only a sheet of all seeds after a few steps [none]'
        row 'stylize' '--pick' 'pick' 'Finish this seed of a contact sheet'
        row 'stylize' '--from' 'from' 'Make it again from a video or its .json, or finish a .latents file; other flags win'
        row 'stylize' '--from-file' 'from-file' 'One video per line of a .txt, .jsonl or .csv file'
        row 'stylize' '-F' 'from-file' 'One video per line of a .txt, .jsonl or .csv file'
        row 'stylize' '--model' 'model' 'One of `osp models` [osp-mini]'
        row 'stylize' '-m' 'model' 'One of `osp models` [osp-mini]'
        row 'stylize' '--device' 'device' 'auto, cuda, mps or cpu [auto]'
        row 'stylize' '--dtype' 'dtype' 'bfloat16, float16 or float32 [the model''s]'
        row 'stylize' '--offload' 'offload' 'Where idle weights wait: none, model, group, sequential or disk [what fits]'
        row 'stylize' '--quant' 'quant' 'Smaller weights: none, fp8, int8, nf4 or gguf [none, or fp8 where it must be]'
        row 'stylize' '--attention' 'attention' 'Kernels: auto, sdpa, flash or sage [auto]'
        row 'stylize' '--vae-tiling' '' 'Decode in tiles: less memory, not quite the same picture [where it must be]'
        row 'stylize' '--no-vae-tiling' '' 'Decode in tiles: less memory, not quite the same picture [where it must be]'
        row 'stylize' '--compile' '' 'Compile the blocks: slow to start, quicker steps [no]'
        row 'stylize' '--no-compile' '' 'Compile the blocks: slow to start, quicker steps [no]'
        row 'stylize' '--gpus' 'gpus' 'Sample on N graphics cards together [1]'
        row 'stylize' '--max-vram' 'max-vram' 'Use no more of the graphics card''s memory, as in 12GB'
        row 'stylize' '--max-ram' 'max-ram' 'Plan with no more of the computer''s memory'
        row 'stylize' '--offline' '' 'Never touch the network'
        row 'stylize' '--metadata' '' 'Keep the recipe in the video and beside it, or nowhere [kept]'
        row 'stylize' '--no-metadata' '' 'Keep the recipe in the video and beside it, or nowhere [kept]'
        row 'stylize' '--config' 'config' 'Settings in TOML [osp.toml]'
        row 'stylize' '--print-config' '' 'Show every setting and where it comes from, and exit'
        row 'stylize' '--dry-run' '' 'Show the plan, with bytes and time, and exit'
        row 'stylize' '--json' '' 'One JSON object per line on stdout'
        row 'stylize' '--quiet' '' 'Say nothing but errors'
        row 'stylize' '-q' '' 'Say nothing but errors'
        row 'stylize' '--verbose' '' 'Say where each setting comes from'
        row 'stylize' '-v' '' 'Say where each setting comes from'
        row 'stylize' '--debug' '' 'Show a traceback with an error'
        row 'stylize' '--help' '' 'Show this message and exit'
        row 'stylize' '-h' '' 'Show this message and exit'
        row 'styles' '--gallery' 'gallery' 'Write a page with a picture of each'
        row 'styles' '--image' 'image' 'Make the page''s pictures of this photo'
        row 'styles' '--overwrite' '' 'Replace an existing page'
        row 'styles' '-y' '' 'Replace an existing page'
        row 'styles' '--json' '' 'One JSON object per line on stdout'
        row 'styles' '--quiet' '' 'Say nothing but errors'
        row 'styles' '-q' '' 'Say nothing but errors'
        row 'styles' '--debug' '' 'Show a traceback with an error'
        row 'styles' '--help' '' 'Show this message and exit'
        row 'styles' '-h' '' 'Show this message and exit'
        row 'download' '--list' '' 'Show what there is: size, licence, what is installed, what fits this machine'
        row 'download' '--dry-run' '' 'Show the files, bytes and free space, and exit'
        row 'download' '--verify' '' 'Read what is here again and compare its hashes'
        row 'download' '--local' 'local' 'Install weights that are on this disk, in any layout'
        row 'download' '--revision' 'revision' 'Branch, tag or commit of the model''s own repository [the card''s]'
        row 'download' '--include' 'include' 'Only files that match, into the cache; may be repeated [all]'
        row 'download' '--exclude' 'exclude' 'No files that match; may be repeated [none]'
        row 'download' '--mirror' 'mirror' 'Ask this server first, without your token; may be repeated [none]'
        row 'download' '--jobs' 'jobs' 'Files at a time [4]'
        row 'download' '--limit-rate' 'limit-rate' 'Bytes a second of all files together, as in 500K or 5M [unlimited]'
        row 'download' '--offline' '' 'Never touch the network'
        row 'download' '--overwrite' '' 'Install anew what is installed, also from elsewhere'
        row 'download' '-y' '' 'Install anew what is installed, also from elsewhere'
        row 'download' '--json' '' 'One JSON object per line on stdout'
        row 'download' '--quiet' '' 'Say nothing but errors'
        row 'download' '-q' '' 'Say nothing but errors'
        row 'download' '--debug' '' 'Show a traceback with an error'
        row 'download' '--help' '' 'Show this message and exit'
        row 'download' '-h' '' 'Show this message and exit'
        row 'doctor' '--json' '' 'One JSON object per line on stdout'
        row 'doctor' '--debug' '' 'Show a traceback with an error'
        row 'doctor' '--help' '' 'Show this message and exit'
        row 'doctor' '-h' '' 'Show this message and exit'
        row 'bench' '--quick' '' 'Fewer photos and shorter clips: minutes'
        row 'bench' '--photos' 'photos' 'Pictures to measure on [seven photos]'
        row 'bench' '--out' 'out' 'Keep a report and sheets of clips there'
        row 'bench' '--weights' 'weights' 'Other weights of the same layout'
        row 'bench' '--model' 'model' 'One of `osp models` [osp-mini]'
        row 'bench' '-m' 'model' 'One of `osp models` [osp-mini]'
        row 'bench' '--caches' 'caches' 'What cache compares, as in fbcache:0.1,magcache'
        row 'bench' '--steps' 'steps' 'Sampler steps [the model''s]'
        row 'bench' '--style' 'style' 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
        row 'bench' '-s' 'style' 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
        row 'bench' '--json' '' 'One JSON object per line on stdout'
        row 'bench' '--quiet' '' 'Say nothing but errors'
        row 'bench' '-q' '' 'Say nothing but errors'
        row 'bench' '--debug' '' 'Show a traceback with an error'
        row 'bench' '--help' '' 'Show this message and exit'
        row 'bench' '-h' '' 'Show this message and exit'
        row 'completion' '--debug' '' 'Show a traceback with an error'
        row 'completion' '--help' '' 'Show this message and exit'
        row 'completion' '-h' '' 'Show this message and exit'
        row 'schema' '--debug' '' 'Show a traceback with an error'
        row 'schema' '--help' '' 'Show this message and exit'
        row 'schema' '-h' '' 'Show this message and exit'
        row 'models' '--json' '' 'One JSON object per line on stdout'
        row 'models' '--debug' '' 'Show a traceback with an error'
        row 'models' '--help' '' 'Show this message and exit'
        row 'models' '-h' '' 'Show this message and exit'
        row 'models inspect' '--model' 'model' 'Hold it against one of `osp models`'
        row 'models inspect' '-m' 'model' 'Hold it against one of `osp models`'
        row 'models inspect' '--json' '' 'One JSON object per line on stdout'
        row 'models inspect' '--debug' '' 'Show a traceback with an error'
        row 'models inspect' '--help' '' 'Show this message and exit'
        row 'models inspect' '-h' '' 'Show this message and exit'
    )
    # Command, number of the argument and its kind.
    $arguments = @(
        row 'generate' '0' 'image' 'IMAGE'
        row 'generate' '1' 'prompt' 'PROMPT'
        row 'stylize' '0' 'inputs' 'INPUT... [PROMPT]'
        row 'styles' '0' 'name' '[NAME]'
        row 'download' '0' 'models' 'MODEL'
        row 'bench' '0' 'subject' 'WHAT'
        row 'completion' '0' 'shell' 'SHELL'
        row 'schema' '0' 'document' 'DOCUMENT'
        row 'models inspect' '0' 'files' 'FILE...'
        row '' '0' 'command' 'COMMAND'
        row 'models' '0' 'command models' 'COMMAND'
    )
    # Commands inside others, by their full names.
    $nested = @('models inspect')
    # Kind, word and what it means.
    $words = @(
        row 'command' 'generate' '' 'Turn a picture into a video'
        row 'command' 'stylize' '' 'Turn pictures and videos into clips in a style'
        row 'command' 'styles' '' 'List the styles'
        row 'command' 'download' '' 'Fetch the weights of models, or go on with it, and check them'
        row 'command' 'doctor' '' 'Look at this machine, and tell what would run on it'
        row 'command' 'bench' '' 'Measure a model against what is promised of it'
        row 'command' 'completion' '' 'Print a script that lets a shell complete osp''s command lines'
        row 'command' 'schema' '' 'Print the JSON Schema of what osp writes'
        row 'command' 'models' '' 'List the models and where their weights are, or would go'
        row 'command models' 'inspect' '' 'Tell what is in a file of weights: a LoRA''s layout, rank, strength and what it fits'
        row 'attention' 'auto' '' 'auto'
        row 'attention' 'sdpa' '' 'sdpa'
        row 'attention' 'flash' '' 'flash'
        row 'attention' 'sage' '' 'sage'
        row 'cache' 'none' '' 'none'
        row 'cache' 'teacache' '' 'teacache'
        row 'cache' 'fbcache' '' 'fbcache'
        row 'cache' 'magcache' '' 'magcache'
        row 'device' 'auto' '' 'auto'
        row 'device' 'cpu' '' 'cpu'
        row 'device' 'cuda' '' 'cuda'
        row 'device' 'mps' '' 'mps'
        row 'document' 'events' '' 'one line of --json'
        row 'document' 'recipe' '' 'the sidecar of a video, and the comment inside it'
        row 'document' 'doctor' '' 'osp doctor --json'
        row 'dtype' 'auto' '' 'auto'
        row 'dtype' 'bfloat16' '' 'bfloat16'
        row 'dtype' 'float16' '' 'float16'
        row 'dtype' 'float32' '' 'float32'
        row 'model' 'osp-mini' '' 'Built-in small model for any laptop: camera moves, some scenery, thirteen looks; soft'
        row 'model' 'osp-mini-live' '' 'The built-in model in 4 steps: the quickest clip, a little less exact'
        row 'model' 'flashi2v-1.3b' '' 'Fourier-guided latent shifting on Wan2.1 1.3B; needs a GPU and its weights'
        row 'model' 'helios-14b-distilled' '' 'Endless video in few steps; cannot be run by this version yet; needs a large GPU'
        row 'model' 'qwen2.5-vl-7b' '' 'A part of other models: reads prompts for uniworld-osp2-14b; makes no videos'
        row 'model' 'uniworld-osp2-14b' '' 'The paper''s model: FlashI2V 14B led by Qwen2.5-VL-7B; needs a large GPU and its weights'
        row 'model' 'wan2.1-i2v-14b-480p' '' 'Moves pictures by plain Wan2.1 14B at 480p, without latent shifting; needs a large GPU'
        row 'model' 'wan2.1-i2v-14b-720p' '' 'Moves pictures by plain Wan2.1 14B at 720p, without latent shifting; needs a large GPU'
        row 'model' 'wan2.1-t2v-1.3b' '' 'Text to video by plain Wan2.1 1.3B, with --text; needs a GPU and its weights'
        row 'model' 'wan2.1-t2v-14b' '' 'Text to video by plain Wan2.1 14B, with --text; needs a large GPU and its weights'
        row 'models' 'osp-mini' '' 'Built-in small model for any laptop: camera moves, some scenery, thirteen looks; soft'
        row 'models' 'osp-mini-live' '' 'The built-in model in 4 steps: the quickest clip, a little less exact'
        row 'models' 'flashi2v-1.3b' '' 'Fourier-guided latent shifting on Wan2.1 1.3B; needs a GPU and its weights'
        row 'models' 'helios-14b-distilled' '' 'Endless video in few steps; cannot be run by this version yet; needs a large GPU'
        row 'models' 'qwen2.5-vl-7b' '' 'A part of other models: reads prompts for uniworld-osp2-14b; makes no videos'
        row 'models' 'uniworld-osp2-14b' '' 'The paper''s model: FlashI2V 14B led by Qwen2.5-VL-7B; needs a large GPU and its weights'
        row 'models' 'wan2.1-i2v-14b-480p' '' 'Moves pictures by plain Wan2.1 14B at 480p, without latent shifting; needs a large GPU'
        row 'models' 'wan2.1-i2v-14b-720p' '' 'Moves pictures by plain Wan2.1 14B at 720p, without latent shifting; needs a large GPU'
        row 'models' 'wan2.1-t2v-1.3b' '' 'Text to video by plain Wan2.1 1.3B, with --text; needs a GPU and its weights'
        row 'models' 'wan2.1-t2v-14b' '' 'Text to video by plain Wan2.1 14B, with --text; needs a large GPU and its weights'
        row 'name' '3d-rendering' '' 'Polished computer-animated scene: smooth forms, soft studio light'
        row 'name' 'chibi' '' 'Cute and small: big heads, big eyes, flat bright color'
        row 'name' 'cyberpunk' '' 'Neon night: teal and magenta glow, wet reflections, dark haze'
        row 'name' 'disney' '' 'Family feature animation: bright color, round shapes, warm glow'
        row 'name' 'fairy-tale' '' 'Storybook illustration: pastel glow, sparkles, enchanted mood'
        row 'name' 'ghibli' '' 'Hand-painted anime film: soft light, lush greens, gentle skies'
        row 'name' 'gotham-noir' '' 'Film noir: black shadows, rain, cold hard light'
        row 'name' 'ink' '' 'Eastern ink wash: black strokes, grey mist, rice paper'
        row 'name' 'lego' '' 'Everything built of toy bricks: studs, seams, glossy plastic'
        row 'name' 'oil' '' 'Classic canvas: thick brush strokes, rich color, warm light'
        row 'name' 'pixel-art' '' 'Retro game: square pixels, few colors, dithered shades'
        row 'name' 'vaporwave' '' 'Eighties dream: pink and cyan sunset, scan lines, soft glow'
        row 'name' 'watercolor' '' 'Wet washes on paper: bleeding pigment, grain, white edges'
        row 'offload' 'auto' '' 'auto'
        row 'offload' 'none' '' 'none'
        row 'offload' 'model' '' 'model'
        row 'offload' 'group' '' 'group'
        row 'offload' 'sequential' '' 'sequential'
        row 'offload' 'disk' '' 'disk'
        row 'preview' 'none' '' 'none'
        row 'preview' 'latent' '' 'latent'
        row 'preview' 'contact' '' 'contact'
        row 'quant' 'auto' '' 'auto'
        row 'quant' 'none' '' 'none'
        row 'quant' 'fp8' '' 'fp8'
        row 'quant' 'int8' '' 'int8'
        row 'quant' 'nf4' '' 'nf4'
        row 'quant' 'gguf' '' 'gguf'
        row 'sampler' 'euler' '' 'euler'
        row 'sampler' 'unipc' '' 'unipc'
        row 'shell' 'bash' '' 'bash'
        row 'shell' 'zsh' '' 'zsh'
        row 'shell' 'fish' '' 'fish'
        row 'shell' 'powershell' '' 'powershell'
        row 'style' '3d-rendering' '' 'Polished computer-animated scene: smooth forms, soft studio light'
        row 'style' 'chibi' '' 'Cute and small: big heads, big eyes, flat bright color'
        row 'style' 'cyberpunk' '' 'Neon night: teal and magenta glow, wet reflections, dark haze'
        row 'style' 'disney' '' 'Family feature animation: bright color, round shapes, warm glow'
        row 'style' 'fairy-tale' '' 'Storybook illustration: pastel glow, sparkles, enchanted mood'
        row 'style' 'ghibli' '' 'Hand-painted anime film: soft light, lush greens, gentle skies'
        row 'style' 'gotham-noir' '' 'Film noir: black shadows, rain, cold hard light'
        row 'style' 'ink' '' 'Eastern ink wash: black strokes, grey mist, rice paper'
        row 'style' 'lego' '' 'Everything built of toy bricks: studs, seams, glossy plastic'
        row 'style' 'oil' '' 'Classic canvas: thick brush strokes, rich color, warm light'
        row 'style' 'pixel-art' '' 'Retro game: square pixels, few colors, dithered shades'
        row 'style' 'vaporwave' '' 'Eighties dream: pink and cyan sunset, scan lines, soft glow'
        row 'style' 'watercolor' '' 'Wet washes on paper: bleeding pigment, grain, white edges'
        row 'style' 'none' '' 'No style'
        row 'style' 'all' '' 'A sheet with one of each'
        row 'subject' 'mini' '' 'The built-in model, on photos that its training never saw'
        row 'subject' 'cache' '' 'Step caches: what each threshold saves and costs on a model'
    )
    # Kind, and the pattern of the files that are offered.
    $files = @(
        row 'config' '\.(toml)[''\"]?$' '' ''
        row 'files' '\.(safetensors)[''\"]?$' '' ''
        row 'from' '\.(mp4|json|safetensors)[''\"]?$' '' ''
        row 'from-file' '\.(txt|jsonl|csv)[''\"]?$' '' ''
        row 'gallery' '\.(html)[''\"]?$' '' ''
        row 'image' '\.(png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm)[''\"]?$' '' ''
        row 'inputs' '\.(png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm|mp4|mov|mkv|webm|avi|m4v|mpg|ts)[''\"]?$' '' ''
        row 'local' '' '' ''
        row 'lora' '\.(safetensors)[''\"]?$' '' ''
        row 'out' '' '' ''
        row 'output' '' '' ''
        row 'photos' '' '' ''
        row 'weights' '' '' ''
    )

    $command = ''
    $place = 0
    $waiting = ''
    $ended = $false
    # The words before the one that is being typed; the first is the program.
    $before = @($commandAst.CommandElements |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        Select-Object -Skip 1 |
        ForEach-Object { $_.Extent.Text.Trim([char[]]@(34, 39)) })
    foreach ($word in $before) {
        if ($waiting) {
            $waiting = ''
        } elseif (-not $ended -and $word -ceq '--') {
            $ended = $true
        } elseif (-not $ended -and $word.Length -gt 1 -and $word.StartsWith('-')) {
            $option = $options |
                Where-Object { $_.Command -ceq $command -and $_.Key -ceq $word } |
                Select-Object -First 1
            if ($option) { $waiting = $option.Kind }
        } elseif (-not $command) {
            $command = $word
        } elseif (-not $place -and $nested -ccontains "$command $word") {
            $command = "$command $word"
        } else {
            $place++
        }
    }

    $value = "$wordToComplete"
    $prefix = ''
    $kind = $waiting
    if (-not $waiting -and -not $ended -and $value -cmatch '^(--[^=]*)=(.*)$') {
        $flag = $Matches[1]
        $value = $Matches[2]
        $prefix = "$flag="
        $kind = ($options |
            Where-Object { $_.Command -ceq $command -and $_.Key -ceq $flag } |
            Select-Object -First 1).Kind
    } elseif (-not $waiting -and -not $ended -and $value.StartsWith('-')) {
        $options |
            Where-Object { $_.Command -ceq $command -and $_.Key.StartsWith($value) } |
            ForEach-Object {
                [System.Management.Automation.CompletionResult]::new(
                    $_.Key, $_.Key, 'ParameterName', $_.Text)
            }
        return
    } elseif (-not $waiting) {
        $kind = ($arguments |
            Where-Object { $_.Command -ceq $command -and $_.Key -ceq "$place" } |
            Select-Object -First 1).Kind
    }

    $found = @($words |
        Where-Object { $_.Command -ceq $kind -and $_.Key.StartsWith($value) } |
        ForEach-Object {
            [System.Management.Automation.CompletionResult]::new(
                $prefix + $_.Key, $_.Key, 'ParameterValue', $_.Text)
        })
    $pattern = $files | Where-Object { $_.Command -ceq $kind } | Select-Object -First 1
    if ($pattern) {
        $found = @([System.Management.Automation.CompletionCompleters]::CompleteFilename($value) |
            Where-Object { $_.ResultType -eq 'ProviderContainer' -or
                $_.CompletionText -match $pattern.Key } |
            ForEach-Object {
                [System.Management.Automation.CompletionResult]::new(
                    $prefix + $_.CompletionText, $_.ListItemText, $_.ResultType, $_.ToolTip)
            })
    }
    # Where nothing fits, an empty text keeps PowerShell from offering files on its own.
    if ($found) { $found } else { '' }
}
